"""Verdicts: boundaries, values that are no number, and expectations against records."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilebert.jobs.record import Record
from mobilebert.reporting.verdicts import cell, expectations
from mobilebert.study.load import load_study
from mobilebert.study.sections import Expectation


def record(key="finetune/student/sst2", status="ok", **metrics):
    stage, _, name = key.partition("/")
    return Record(
        schema=1,
        study="s",
        stage=stage,
        name=name,
        status=status,
        fingerprint="f",
        config={},
        inputs={},
        metrics=metrics,
    )


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (90.0, "match"),
        (89.0, "match"),  # exactly the tolerance
        (91.0, "match"),
        (88.99, "near"),
        (88.5, "near"),  # exactly 1.5 tolerances
        (91.5, "near"),
        (88.49, "differs"),
        (91.51, "differs"),  # too good is also wrong
        (100.0, "differs"),
        (math.nan, "diverged"),
        (math.inf, "diverged"),
    ],
)
def test_tolerance_is_two_sided(measured, verdict):
    assert cell(90.0, measured, 1.0) == verdict


def test_the_last_digit_of_a_float_does_not_decide_the_verdict():
    assert 64.4 - 63.4 > 1.0
    assert cell(63.4, 64.4, 1.0) == "match"


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        ({"status": None}, "not run"),
        ({"status": "diverged"}, "diverged"),
        ({"status": "refused"}, "refused"),
        ({"status": "void"}, "void"),
        ({"status": "failed"}, "failed"),
        ({"status": "failed", "published": None}, "failed"),
        ({"labels": ("split: 2 processes", "record: without a checksum", "changed: precision bf16")}, "match"),
        ({"labels": ("scaled",)}, "not judged"),
        ({"labels": ("scaled",), "measured": math.nan}, "diverged"),
        ({"labels": ("corpus: other books", "search: none")}, "match"),
        ({"labels": ("corpus: other books", "scaled")}, "not judged"),
        ({"tolerance": None}, "not judged"),
        ({"published": None}, "not judged"),
        ({"tolerance": 0.01, "relative": True, "measured": 90.9}, "match"),
        ({"tolerance": 0.01, "relative": True, "measured": 91.0}, "near"),
    ],
)
def test_status_labels_and_tolerance_decide_the_verdict(arguments, verdict):
    assert cell(**{"published": 90.0, "measured": 90.0, "tolerance": 1.0, **arguments}) == verdict


def test_text_and_shapes_are_equal_or_not():
    assert cell([512, 4, 128], [512, 4, 128], 0) == "match"
    assert cell("relu", "gelu", 0) == "differs"
    assert cell(None, "gelu", 0) == "not judged"
    assert cell([512, 128], None, 0) == "differs"


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_the_sign_of_the_difference_does_not_matter(published, distance, tolerance):
    assert cell(published, published + distance, tolerance) == cell(published, published - distance, tolerance)


def expect(metric="finetune/student/sst2:accuracy", reason="because", **fields):
    return Expectation(what="w", metric=metric, reason=reason, **fields)


RECORDS = {
    item.id: item
    for item in (
        record(accuracy=0.75, f1=None),
        record("finetune/baseline/sst2", accuracy=0.5),
        record("distill/student", "diverged", loss=1.0),
        record("latency", **{"student/pytorch:p50_ms": 4.0, "bert/pytorch:p50_ms": 8.0}),
    )
}


@pytest.mark.parametrize(
    ("expectation", "outcome"),
    [
        (expect(above="finetune/baseline/sst2:accuracy"), "pass"),
        (expect(above="finetune/baseline/sst2:accuracy", by=0.25), "pass"),  # exactly the margin
        (expect(above="finetune/baseline/sst2:accuracy", by=0.26), "fail"),
        (expect(below="finetune/baseline/sst2:accuracy"), "fail"),
        (expect(above=0.75), "fail"),  # equal is not above
        (expect(above=0.76, by=-0.01), "pass"),  # no more than 0.01 lost
        (expect(below=1), "pass"),
        (expect("latency:student/pytorch:p50_ms", below="latency:bert/pytorch:p50_ms", by=3), "pass"),
    ],
)
def test_expectations(expectation, outcome):
    (found,) = expectations([expectation], RECORDS)
    assert found.outcome == outcome
    assert (found.problem is None) == (outcome == "pass")
    assert found.left is not None
    assert found.right is not None


@pytest.mark.parametrize(
    ("expectation", "problem"),
    [
        (expect("finetune/nobody/sst2:accuracy", above=0.1), "no current record of finetune/nobody/sst2"),
        (expect("finetune/student/sst2:spearmanr", above=0.1), "no metric spearmanr"),
        (expect("finetune/student/sst2:f1", above=0.1), "not a finite number"),
        (expect("distill/student:loss", below=2.0), "distill/student is diverged"),
        (expect(above="finetune/nobody/sst2:accuracy"), "no current record of finetune/nobody/sst2"),
    ],
)
def test_an_expectation_without_its_metric_fails(expectation, problem):
    (found,) = expectations([expectation], RECORDS)
    assert found.outcome == "fail"
    assert problem in found.problem


SEEDS = {
    item.id: item
    for item in (
        *(record(f"distill/taught-{seed}", loss=loss) for seed, loss in enumerate((3.0, 3.2, 3.4))),
        *(record(f"pretrain/alone-{seed}", loss=loss) for seed, loss in enumerate((3.6, 3.3, 3.9))),
        record("pretrain/teacher", loss=3.0, entropy=4.0),
        record("pretrain/alone-3", "diverged", loss=3.0),
    )
}
TAUGHT = "distill/taught-0, distill/taught-1, distill/taught-2:loss"
ALONE = "pretrain/alone-0, pretrain/alone-1, pretrain/alone-2:loss"


@pytest.mark.parametrize(("by", "outcome"), [(0.0, "pass"), (0.4, "pass"), (0.41, "fail")])
def test_means_over_seeds_are_compared_and_every_seed_is_shown(by, outcome):
    (found,) = expectations([expect(TAUGHT, below=ALONE, by=by)], SEEDS)
    assert (found.outcome, found.left, found.right) == (outcome, pytest.approx(3.2), pytest.approx(3.6))
    shown = found.problem or found.comparison
    assert "3.2000 [3.0000, 3.2000, 3.4000]" in shown
    assert "3.6000 [3.6000, 3.3000, 3.9000]" in shown


@pytest.mark.parametrize(
    ("side", "problem"),
    [("pretrain/alone-0, pretrain/alone-3:loss", "alone-3 is diverged"), ("distill/taught-0, x:loss", "of x")],
)
def test_a_mean_over_seeds_needs_every_seed(side, problem):
    (found,) = expectations([expect(TAUGHT, below=side)], SEEDS)
    assert found.outcome == "fail"
    assert problem in found.problem


@pytest.mark.parametrize(("by", "outcomes"), [(1.0, ["pass", "pass"]), (1.1, ["fail", "void"])])
def test_a_comparison_is_void_without_its_condition(by, outcomes):
    condition = Expectation(
        what="the teacher knows", metric="pretrain/teacher:loss", below="pretrain/teacher:entropy", by=by, reason="r"
    )
    found = expectations([condition, expect(TAUGHT, below=ALONE, void_unless="the teacher knows")], SEEDS)
    assert [item.outcome for item in found] == outcomes
    if by > 1:
        assert found[1].problem == "fail: the teacher knows"


@pytest.mark.parametrize("side", ["above", "below"])
def test_an_expectation_that_is_not_judged_is_only_shown(side):
    (found,) = expectations([expect(TAUGHT, judged=False, **{side: ALONE})], SEEDS)
    assert found.outcome == "shown"
    assert found.left == pytest.approx(3.2)
    (missing,) = expectations([expect(TAUGHT, judged=False, **{side: "pretrain/alone-3:loss"})], SEEDS)
    assert missing.outcome == "fail"


@pytest.mark.parametrize("model", ["scratch", "scratch-compute"])
@pytest.mark.parametrize("unlearnt", [False, True])
def test_the_study_learning_fails_when_one_seed_from_scratch_learns_nothing(model, unlearnt):
    """The worst measured losses, 3.94 and 1.64 nats, pass; a seed at unigram entropy fails."""
    entropy, loss = 4.957, {"scratch": 3.94, "scratch-compute": 1.64}[model]
    losses = {f"pretrain/{model}": entropy if unlearnt else loss}
    losses |= {f"pretrain/{model}-seed-{seed}": loss for seed in (1, 2)}
    records = {key: record(key, heldout_mlm_loss=value, unigram_entropy=entropy) for key, value in losses.items()}
    floors = [item for item in load_study("learning").expect if item.metric == f"{', '.join(losses)}:heldout_mlm_loss"]
    assert [item.outcome for item in expectations(floors, records)] == ["fail" if unlearnt else "pass"]
