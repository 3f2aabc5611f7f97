"""Compare every metric of two sides: values, difference, interval, verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mobilebert.compare.interval import difference_margin
from mobilebert.compare.side import Facts, Side

Verdict = Literal["same", "better", "worse", "changed", "unclear", "differs", "missing", "edited", "void", "diverged", "refused"]
Better = Literal["higher", "lower"]

ALPHA = 0.025  # of each end of an interval: 95 % together
_HIGHER = ("accuracy", "f1", "exact", "exact_match", "em", "matthews_correlation", "pearson", "spearmanr", "speed")
_LOWER = ("loss", "bits_per_byte", "ms", "failed_share")
_NEUTRAL = ("constant_exact_match", "thresh")


@dataclass(frozen=True)
class Values:
    """The values of one side: one a run, or one a seed of its only run."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Return the standard deviation; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class MetricRow:
    """One metric of both sides. A side is None if it has no value.

    difference: mean of the new less mean of the base. margin: half of its 95 % interval; None if
    neither side has a spread. better: which way is better, None for a mere count.
    """

    job: str
    metric: str
    base: Values | None
    new: Values | None
    difference: float | None
    margin: float | None
    better: Better | None
    verdict: Verdict

    @property
    def arrow(self) -> str:
        """Return an arrow that shows which way is better."""
        return {"higher": "↑", "lower": "↓", None: ""}[self.better]

    @property
    def is_timing(self) -> bool:
        """Return whether the metric is a time, which two runs never have to the digit."""
        return self.metric.endswith("_ms")


def better(metric: str) -> Better | None:
    """Return which way a metric is better; None for counts, shares of the data and thresholds."""
    if metric.endswith(_NEUTRAL):
        return None
    name = metric.rpartition(":")[2].removesuffix("_change")
    if name.endswith(_LOWER):
        return "lower"
    return "higher" if name.endswith(_HIGHER) else None


def metric_rows(base: Side, new: Side) -> list[MetricRow]:
    """Return a row for every metric of both sides, in the order of the base."""
    found = []
    for job in dict.fromkeys([*base.jobs, *new.jobs]):
        mine, theirs = base.jobs.get(job), new.jobs.get(job)
        names = [*(mine.metrics if mine else ()), *(theirs.metrics if theirs else ())]
        for metric in dict.fromkeys(names):
            found.append(_row(job, metric, mine, theirs, job in (*base.edited, *new.edited)))
    return found


def changed_first(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Return the rows, those of records with a metric that is not the same before the others."""
    changed = {row.job for row in rows if row.verdict != "same" and not row.is_timing}
    return sorted(rows, key=lambda row: row.job not in changed)


def _row(job: str, metric: str, base: Facts | None, new: Facts | None, edited: bool) -> MetricRow:
    old, fresh = (facts.values(metric) if facts else () for facts in (base, new))
    before, now = (Values(values) if values else None for values in (old, fresh))
    if before is None or now is None:
        verdict: Verdict = "edited" if edited else _absence(base if before is None else new)
        return MetricRow(job, metric, before, now, None, None, better(metric), verdict)
    difference, margin = now.mean - before.mean, difference_margin(old, fresh, ALPHA)
    return MetricRow(job, metric, before, now, difference, margin, better(metric), judge(old, fresh, better(metric)))


def _absence(facts: Facts | None) -> Verdict:
    for status in facts.status if facts else ():
        if status in ("void", "diverged", "refused"):
            return status
    return "missing"


def judge(base: Sequence[float], new: Sequence[float], direction: Better | None) -> Verdict:
    """Return the verdict on the values of two sides.

    same: equal to the digit. unclear: the 95 % interval of the difference holds 0. better, worse,
    or changed if no way is better: it does not. differs: no interval, both are single values.
    """
    if tuple(base) == tuple(new) or len({*base, *new}) == 1:
        return "same"
    difference, margin = statistics.fmean(new) - statistics.fmean(base), difference_margin(base, new, ALPHA)
    if margin is None:
        return "differs"
    if abs(difference) <= margin:
        return "unclear"
    if direction is None:
        return "changed"
    return "better" if (difference > 0) == (direction == "higher") else "worse"
