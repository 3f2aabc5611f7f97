"""The page's attention maps: drawn from a record, with the difference from the teacher."""

import re

import pytest
from short_records import of, record

from mobilebert.reporting.chart import LEVELS, MapRow, maps
from mobilebert.reporting.figures import figures

SAME, OTHER = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [1.0, 0.0]]


def kept(*models, tokens=("[CLS]", "<b>")):
    """Return records of which one keeps a map of each head of each (model, weights, heads)."""
    found = [{"model": model, "weights": weights, "layers": {"3": heads}} for model, weights, heads in models]
    return of(record("attention/mobilebert", attention={"tokens": list(tokens), "maps": found}))


def figure(records):
    return next((item for item in figures(records) if item.id == "attention"), None)


def said(records):
    (panel,) = figure(records).panels
    return re.search('aria-label="([^"]*)"', panel.svg)[1]


def test_every_model_is_named_with_its_difference_from_the_teacher():
    records = kept(
        ("ib-bert-large", "pretrain", [SAME, OTHER]),
        ("mobilebert", "initial", [OTHER, OTHER]),
        ("mobilebert", "distill", [OTHER, SAME]),
        ("mobilebert", "transfer", [SAME, OTHER]),
    )
    # OTHER's rows give a half and all of their attention to another token than SAME's: 0.75.
    assert said(records) == (
        "Attention maps. mobilebert and its teacher: layer 3, heads 1 to 2. "
        "Difference from the teacher&#x27;s: ib-bert-large, the teacher; "
        "mobilebert, before its first step 0.38 off; mobilebert, distilled 0.75 off, re-ordered 0.00; "
        "mobilebert, after transfer 0.00 off"
    )
    assert [panel.title for panel in figure(records).panels] == ["mobilebert and its teacher: layer 3, heads 1 to 2"]
    assert figure(records).text.endswith("held out: [CLS] <b>")  # the template escapes it


def painted(svg):
    """Return (row, column) -> strength of the painted cells of the only map."""
    cells = {}
    for strength, path in re.findall(r'fill-opacity="([\d.]+)" d="([^"]+)"', svg):
        for left, top, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            for column in range(int(left), int(left) + int(width)):
                assert (int(top), column) not in cells
                cells[int(top), column] = float(strength)
    return cells


def test_a_cell_has_the_strength_of_its_share_of_the_largest():
    values = [[0.4, 0.4, 0.0], [0.1, 0.2, 0.4], [0.0, 0.004, 0.02]]
    found = painted(maps("label", [MapRow("name", "text", [values])]))
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            assert found.get((row, column), 0.0) == pytest.approx(value / 0.4, abs=0.5 / LEVELS + 1e-9)


@pytest.mark.parametrize(
    "records",
    [
        of(record("distill/mobilebert")),
        of(record("attention/mobilebert", status="void")),
        kept(),
        kept(("ib-bert-large", "pretrain", [])),
        kept(("ib-bert-large", "pretrain", [SAME]), tokens=("one",)),
        kept(("ib-bert-large", "pretrain", [[[1.0, 0.0], [1.0]]])),
        kept(("ib-bert-large", "pretrain", [[[float("nan"), 0.0], [1.0, 0.0]]])),
        kept(("ib-bert-large", "pretrain", [[[1e200, 0.0], [1.0, -3.0]]])),
    ],
)
def test_records_without_whole_maps_draw_nothing(records):
    assert figure(records) is None


def test_a_model_with_other_heads_than_the_teacher_has_no_difference():
    records = kept(("ib-bert-large", "pretrain", [SAME, SAME]), ("student", "distill", [SAME]), ("odd", "distill", [[[1.0]]]))
    assert said(records).endswith("ib-bert-large, the teacher; student, distilled")


def test_names_of_a_record_cannot_leave_the_drawing():
    (panel,) = figure(kept(('"><script>', "pretrain", [SAME]), ("b", "</svg>", [SAME]))).panels
    assert "<script>" not in panel.svg
    assert panel.svg.count("</svg>") == 1


def test_hundreds_of_heads_and_tokens_are_cut():
    size = 40
    heads = [[[1.0 / size] * size] * size] * 300
    assert figure(kept(("teacher", "pretrain", heads), tokens=["a"] * size)) is None
    (panel,) = figure(kept(("teacher", "pretrain", [SAME] * 300), ("student", "distill", [OTHER] * 300))).panels
    assert panel.title == "student and its teacher: layer 3, heads 1 to 4"
    assert panel.svg.count("<g ") == 8
