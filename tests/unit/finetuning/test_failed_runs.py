"""When a trial has failed: each condition at its boundary, standard errors, and summaries.

Standard errors are compared with simulation, summaries with NumPy.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilebert.finetuning.outcomes import failure, guess, summary

FALLING = [1.0] * 10 + [0.5] * 10


def fails(task, metrics, rows=100, shares=(0.4, 0.6), losses=FALLING):
    return failure(task, metrics, rows, shares, losses)


def test_predicting_one_class_is_a_failure_whatever_the_score():
    high = {"accuracy": 0.95, "majority": 0.6}
    assert fails("sst2", high, shares=(0.0, 1.0)) == "predicts one class: positive"
    assert fails("mnli", high, shares=(0.0, 1.0, 0.0)) == "predicts one class: neutral"
    assert fails("sst2", high, shares=(0.01, 0.99)) is None
    assert fails("cola", {"matthews_correlation": 0.0}, shares=(0.0, 1.0)) == "predicts one class: acceptable"


@pytest.mark.parametrize("task", ["sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"])
def test_accuracy_must_exceed_the_majority_by_one_standard_error(task):
    """With 100 rows and a majority of 0.8 the standard error is sqrt(0.8 x 0.2 / 100) = 0.04."""
    assert guess(task, {"majority": 0.8}, 100) == ("accuracy", 0.8, pytest.approx(0.04))
    limit = 0.8 + math.sqrt(0.8 * (1 - 0.8) / 100)
    assert "is not above guessing" in fails(task, {"accuracy": limit, "majority": 0.8, "f1": 0.9})
    assert fails(task, {"accuracy": math.nextafter(limit, 1), "majority": 0.8, "f1": 0.0}) is None


@pytest.mark.parametrize(("task", "metric", "rows", "error"), [
    ("cola", "matthews_correlation", 100, 0.1), ("stsb", "spearmanr", 101, 0.1),
])  # fmt: skip
def test_correlations_must_exceed_one_standard_error(task, metric, rows, error):
    shares = () if task == "stsb" else (0.4, 0.6)
    assert fails(task, {metric: error}, rows, shares)
    assert fails(task, {metric: math.nextafter(error, 1)}, rows, shares) is None
    assert fails(task, {metric: -0.5}, rows, shares)


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_the_standard_error_of_no_correlation_is_that_of_simulated_guesses(task):
    """The oracle is the deviation of library scores over draws of 200 independent pairs."""
    from scipy.stats import spearmanr
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(0)
    draws = [(rng.random(200), rng.random(200)) for _ in range(800)]
    if task == "stsb":
        found = [spearmanr(a, b).statistic for a, b in draws]
    else:
        found = [matthews_corrcoef(a > 0.3, b > 0.4) for a, b in draws]
    assert np.std(found) == pytest.approx(guess(task, {}, 200)[2], rel=0.08)  # 2.5 % is one deviation of 800 draws


def test_squad_must_exceed_the_constant_answer():
    shares = (1.0, 0.0)  # every question is answered, which is no collapse to one class
    assert fails("squad_v1.1", {"exact_match": 0.0, "constant_exact_match": 0.0}, shares=shares)
    assert fails("squad_v1.1", {"exact_match": 0.01, "constant_exact_match": 0.0}, shares=shares) is None
    assert fails("squad_v2.0", {"exact_match": 0.55, "constant_exact_match": 0.5}, shares=shares)
    assert fails("squad_v2.0", {"exact_match": 0.551, "constant_exact_match": 0.5}, shares=shares) is None


def test_the_training_loss_must_fall():
    """The last tenth's mean must be below the first's. Fewer than 20 points say nothing."""
    good = {"accuracy": 0.9, "majority": 0.5}
    assert fails("sst2", good, losses=[1, 1, *[0.1] * 16, 1, 1]) == "the training loss did not fall: 1.0000 to 1.0000"
    assert fails("sst2", good, losses=[1, 1, *[9.0] * 16, 1, 0.99]) is None
    for count in range(20):
        assert fails("sst2", good, losses=[0.1] * count) is None
    assert fails("sst2", good, losses=[0.1] * 20)


VALUES = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["ok", "failed", "diverged"])), min_size=1, max_size=7)


@given(VALUES)
def test_summary_agrees_with_numpy(values):
    runs = [
        {"status": status, "metrics": {} if status == "diverged" else {"accuracy": value, "other": -value}}
        for value, status in values
    ]
    found = summary(runs, "accuracy")
    ended = [value for value, status in values if status != "diverged"]
    fine = [value for value, status in values if status == "ok"]
    if not ended:
        assert found == {}
        return
    figures = found["accuracy"]
    assert figures["median"] == pytest.approx(np.median(ended))
    assert figures["mean"] == pytest.approx(np.mean(ended))
    assert figures["sd"] == (pytest.approx(np.std(ended, ddof=1), abs=1e-12) if len(ended) > 1 else None)
    assert (figures["best"], figures["n"], figures["n_ok"]) == (max(ended), len(ended), len(fine))
    assert figures["median_ok"] == (pytest.approx(np.median(fine)) if fine else None)
    assert found["other"]["best"] == -max(ended)  # of the trial that is best by the headline metric
