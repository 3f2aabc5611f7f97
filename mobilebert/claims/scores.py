"""Compute a score for every seed, and its variance over the rows that were scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mobilebert.claims.measured import Score
from mobilebert.evaluation.glue import LEADERBOARD, glue_score
from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.study.tasks import TASKS

CORRELATIONS = ("matthews_correlation", "pearson", "spearmanr")


def score(column: str, records: Mapping[str, Sequence[Record]]) -> Score | None:
    """Return the score of a row, in percentage points; None if a task of the column has no record.

    column: "task:metric", or "glue" for the leaderboard's mean. records: task -> records, one for
    each pre-training seed.
    """
    if column == "glue":
        return _glue(records)
    task, _, metric = column.partition(":")
    mine = list(records.get(task, ()))
    values = [value for record in mine for value in _values(record, metric)]
    if not values:
        return None
    variances = [row_variance(metric, record) for record in mine]
    failed = any(reading.status(record) != "ok" for record in mine)
    return Score(tuple(100 * value for value in values), 1e4 * _largest(variances), failed)


def _largest(variances: Sequence[float]) -> float:
    """Return the largest value; NaN if one is NaN."""
    return math.nan if any(map(math.isnan, variances)) else max(variances)


def _values(record: Record, metric: str) -> list[float]:
    """Return the metric of every seed of fine-tuning, as fractions."""
    given = record.samples.get(metric) or [record.metrics.get(metric)]
    numbers = [reading.number(value) for value in given]
    return [value for value in numbers if not math.isnan(value)]


def row_variance(metric: str, record: Record) -> float:
    """Return the variance of a score over the drawing of its rows, as a squared fraction.

    A mean of values from 0 to 1 has at most p (1 - p) / n. A correlation has (1 - r^2)^2 / n. F1 is
    2J / (1 + J) with J the share of hits among the rows that are positive or called so; there are
    at least as many of those as positive rows. Returns NaN if the record does not count its rows,
    or if a value is none that a score, a count or a share can have.
    """
    rows = record.details.get("rows")
    count = reading.number(rows.get("validation")) if isinstance(rows, dict) else math.nan
    value = reading.number(record.metrics.get(metric))
    if not (count >= 1 and (-1 if metric in CORRELATIONS else 0) <= value <= 1):
        return math.nan
    if metric in CORRELATIONS:
        return (1 - value**2) ** 2 / count
    if metric != "f1" or TASKS[record.name.partition("/")[2]].is_squad:
        return value * (1 - value) / count
    shares = record.details.get("label_shares")
    share = shares.get("validation") if isinstance(shares, dict) else None
    positive = reading.number(share[1]) if isinstance(share, list) and len(share) == 2 else math.nan
    if not 0 < positive <= 1:
        return math.nan
    hits = value / (2 - value)
    return (2 / (1 + hits) ** 2) ** 2 * hits * (1 - hits) / (positive * count)


def _glue(records: Mapping[str, Sequence[Record]]) -> Score | None:
    """Return the leaderboard's mean for every seed that all nine tasks have."""
    if any(not records.get(task) for task in LEADERBOARD):
        return None
    first = {task: records[task][0] for task in LEADERBOARD}
    seeds = min(len(_values(record, metric)) for task, record in first.items() for metric in TASKS[task].metrics)
    values = [
        glue_score({task: {name: _values(record, name)[seed] for name in TASKS[task].metrics} for task, record in first.items()})
        for seed in range(seeds)
    ]
    if not values:
        return None
    # The larger variance of a task's two scores bounds that of their mean.
    variances = [_largest([row_variance(name, record) for name in TASKS[task].metrics]) for task, record in first.items()]
    failed = any(reading.status(record) != "ok" for task, record in first.items() if task != "wnli")
    return Score(tuple(100 * value for value in values), 1e4 * sum(variances) / len(LEADERBOARD) ** 2, failed)
