"""Compute GLUE scores (Wang et al. 2019) from NumPy arrays, as fractions, not percentages.

If a definition divides by zero (one class only, constant predictions), the score is 0.0, as in
scikit-learn.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

# The leaderboard's macro-average is over these nine tasks. A task with two scores counts with their
# mean, MNLI with the mean of its matched and mismatched sets.
LEADERBOARD = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of equal entries. Both arguments are [n]."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 of class 1. Both arguments are [n], 0 or 1."""
    predicted, actual = predictions == 1, labels == 1
    both = int(np.sum(predicted & actual))
    return 2 * both / (int(np.sum(predicted)) + int(np.sum(actual))) if both else 0.0


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the correlation of two class assignments, [n] each.

    For more than two classes it is Gorodkin's R_K.
    """
    classes, codes = np.unique(np.concatenate([predictions, labels]), return_inverse=True)
    predicted = [int(count) for count in np.bincount(codes[: len(predictions)], minlength=len(classes))]
    actual = [int(count) for count in np.bincount(codes[len(predictions) :], minlength=len(classes))]
    # Python integers: the products below reach n^4, which exceeds 64 bits from n = 55,109 on.
    total, correct = len(labels), int(np.sum(predictions == labels))
    covariance = correct * total - sum(p * a for p, a in zip(predicted, actual))
    variances = (total**2 - sum(p * p for p in predicted)) * (total**2 - sum(a * a for a in actual))
    return covariance / math.sqrt(variances) if variances else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the linear correlation. Both arguments are [n], real."""
    x, y = _unit_deviation(predictions), _unit_deviation(labels)
    return float(np.clip(x @ y, -1.0, 1.0))


def _unit_deviation(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.min() == values.max():  # rounding of the mean would leave deviations that are not zero
        return np.zeros_like(values)
    values = values / np.abs(values).max()  # so that no square overflows
    deviation = values - values.mean()
    deviation = deviation / np.abs(deviation).max()
    return deviation / np.linalg.norm(deviation)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the correlation of ranks; ties have their mean rank. Both arguments are [n], real."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # c equal values have the ranks last-c+1 .. last, whose mean is last-(c-1)/2
    return (last - (counts - 1) / 2)[codes]


_FUNCTIONS = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearman,
}


def score(task_name: str, predictions: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> dict[str, float]:
    """Return the scores of one GLUE task, as fractions, keyed and ordered as `Task.metrics`.

    predictions, labels: [n], class indices, or real values for stsb.
    Raises UserError for a task that is not GLUE's, for lengths that differ, for no rows, for labels
    that are hidden (-1) or not a class, and for values that are not finite.
    """
    task = TASKS.get(task_name)
    if task is None or task.is_squad:
        allowed = ", ".join(name for name, known in TASKS.items() if not known.is_squad)
        raise UserError(f"GLUE task {task_name!r} is not known; allowed: {allowed}")
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        raise UserError(
            f"{task_name}: predictions {predictions.shape} and labels {labels.shape} must be [n], of one length, not empty"
        )
    for what, values in (("predictions", predictions), ("labels", labels)):
        if task.is_regression:
            if not np.isfinite(values).all():
                raise UserError(f"{task_name}: {what} must be finite numbers")
        elif not np.isin(values, np.arange(task.num_labels)).all():
            raise UserError(f"{task_name}: {what} must be classes 0 to {task.num_labels - 1} (-1 marks a hidden label)")
    return {name: _FUNCTIONS[name](predictions, labels) for name in task.metrics}


def glue_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the leaderboard's macro-average of nine tasks, with WNLI, in the unit of its input.

    scores: task name -> its `score(...)`; `mnli_mismatched`, if given, is averaged with `mnli`.
    Raises UserError if one of the nine tasks or one of its scores is missing: a mean over fewer is
    not a GLUE score (see `mean_of_cells`).
    """
    missing = [f"{name} {key}" for name in LEADERBOARD for key in TASKS[name].metrics if key not in scores.get(name, {})]
    if missing:
        raise UserError(f"the GLUE score needs all nine tasks; missing: {', '.join(missing)}")
    means = {name: float(np.mean([scores[name][key] for key in TASKS[name].metrics])) for name in LEADERBOARD}
    if "mnli_mismatched" in scores:
        means["mnli"] = (means["mnli"] + scores["mnli_mismatched"]["accuracy"]) / 2
    return sum(means.values()) / len(means)


def mean_of_cells(cells: Mapping[str, float]) -> float:
    """Return the mean of a table's cells; MNLI-m and MNLI-mm count as one task.

    cells: values by the paper's column headings. The mean is not the GLUE column of Table 4, which
    is `glue_score`. Raises UserError if there are no cells.
    """
    tasks: dict[str, list[float]] = {}
    for column, value in cells.items():
        tasks.setdefault(column.removesuffix("-mm").removesuffix("-m"), []).append(value)
    if not tasks:
        raise UserError("a mean of cells needs at least one cell")
    return sum(sum(values) / len(values) for values in tasks.values()) / len(tasks)


def share(predictions: Sequence | np.ndarray, num_labels: int) -> list[float]:
    """Return the share of each predicted class, [num_labels]; empty for regression (num_labels 1).

    The shares sum to 1. They show a model that predicts one class only, whatever its accuracy.
    Raises UserError if there are no predictions.
    """
    if num_labels == 1:
        return []
    predictions = np.asarray(predictions)
    if not len(predictions):
        raise UserError("the share of each class needs at least one prediction")
    return [float(np.mean(predictions == label)) for label in range(num_labels)]
