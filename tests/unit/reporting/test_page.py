"""The report page: self-contained, escaped, complete; read with an HTML parser."""

from html.parser import HTMLParser

import pytest

from mobilebert.jobs.record import Record
from mobilebert.reporting.figures import loss_curves
from mobilebert.reporting.page import controls, duration, render
from mobilebert.reporting.tables import fill
from mobilebert.reporting.verdicts import expectations
from mobilebert.study.job import Graph
from mobilebert.study.schema import Study
from mobilebert.study.sections import Expectation

EXPECT = Expectation(what="beats the baseline", metric="finetune/mobilebert/sst2:accuracy", above=0.8, reason="a < b & c")
STUDY = Study(schema=1, description="<script>alert(1)</script>", expect=(EXPECT,))
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def record(key, status="ok", **fields):
    stage, _, name = key.partition("/")
    content = {"metrics": {}, "config": {}, "seconds": 75.0, **fields}
    return Record(schema=1, study="study", stage=stage, name=name, status=status, fingerprint="0" * 64, inputs={}, **content)


RECORDS = {
    item.id: item
    for item in (
        record("pretrain/ib-bert-large", curves={"train_loss": [(0, 6.0), (10, 3.0)]}, config={"seed": 7}),
        record("distill/mobilebert", curves={"train_loss": [(0, 5.0), (10, None)]}, metrics={"heldout_mlm_loss": 2.5}),
        record("distill/control-fresh-student", metrics={"heldout_mlm_loss": 3.25}),
        record("transfer/mobilebert", curves={"train_loss": [(0, 9.0), (10, 1.0)]}),
        record(
            "finetune/mobilebert/sst2",
            metrics={"accuracy": 0.75, "majority": 0.51},
            curves={"seed0_loss": [(0, 0.7), (9, 0.1)], "seed1_loss": [(0, 0.6), (9, 0.2)]},
            details={"shares": {"validation": [0.25, 0.75]}},
            config={"seeds": [0, 1]},
            labels=("synthetic <rows>",),
        ),
        record("finetune/bag-of-embeddings/sst2", metrics={"accuracy": 0.625}),
        record("finetune/mobilebert/rte", "diverged", reason="loss nan at step 3"),
    )
}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html():
    return render(STUDY, Graph(), RECORDS, fill(STUDY, RECORDS), expectations(STUDY.expect, RECORDS))


@pytest.fixture(scope="module")
def page(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_the_page_loads_nothing_from_elsewhere(html, page):
    assert "http" not in html
    assert "//" not in html.replace("</", "")
    assert "@import" not in html
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
            assert value[1:] in page.ids
        assert "url(" not in (value or "") or "url(#" in value


def test_markup_is_sound_and_ids_are_unique(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_text_is_escaped(html):
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "a &lt; b &amp; c" in html
    assert "synthetic &lt;rows&gt;" in html


def test_the_page_has_every_part(html, page):
    text = " ".join(" ".join(page.text).split())
    for number in range(1, 10):
        assert f"table-{number}" in page.ids
    assert {"expectations", "figures", "controls", "records", "environment"} <= set(page.ids)
    assert "0 of 1 hold" in text
    assert "0.7500 is not above 0.8000" in text
    assert "validation: 25% / 75%" in text
    assert "loss nan at step 3" in text
    assert "1 min 15 s" in text
    assert page.tags.count("svg") == 3
    assert 'lang="en"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_controls_are_shown_beside_the_result():
    """Columns: MobileBERT, majority class, bag of embeddings, fresh student, shuffled teacher."""
    assert controls(STUDY, RECORDS) == [
        ("sst2 accuracy (%)", ["75.0", "51.0", "62.5", "–", "–"]),
        ("held-out masked-LM loss (nats, lower is better)", ["2.500", "–", "–", "3.250", "–"]),
    ]


def test_figures_are_the_same_bytes_each_time():
    first, second = loss_curves(RECORDS), loss_curves(RECORDS)
    assert list(first) == ["Pre-training and distillation", "Knowledge transfer", "Fine-tuning"]
    assert first == second
    assert "sst2" in first["Fine-tuning"]
    for key in ("pretrain/ib-bert-large", "distill/mobilebert"):
        assert f">{key}<" in first["Pre-training and distillation"]  # text of the legend
    assert "bag-of-embeddings" not in first["Fine-tuning"]  # it has no curve
    assert loss_curves({}) == {}


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3725, "1 h 2 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
