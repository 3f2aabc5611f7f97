"""Judge one gated metric by pure functions: the rule of the gate, which docs/ci.md states."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from mobilebert.compare.interval import prediction_margin
from mobilebert.compare.metrics import Better

ALPHA = 0.005  # chance of a false `worse`, and of a false `suspicious`, over all metrics together
LEAST_SEEDS = 10  # of a baseline
LEAST_VALUES = 4  # different ones: an accuracy at its ceiling has fewer, and no normal spread
SLOWER = 1.1  # the median of enough ratios of times that grew by this factor is worse
FAR = 1.2  # the same of fewer; the median of enough that fell by it is suspicious
# Two groups explain this share of the variance. One in a thousand normal samples of 20 values
# reaches it, seven in a thousand of 10.
TWO_GROUPS = 0.85
APART = 0.05  # the means of the groups differ by this share of the larger one

_ROUNDING = 1e-9


def judge_fresh(
    baseline: Sequence[float], fresh: Sequence[float], metrics: int, better: Better
) -> Literal["pass", "worse", "suspicious"]:
    """Return the verdict on the mean of fresh seeds.

    It is `worse` or, too good to be luck, `suspicious` if it lies outside the prediction interval
    of the baseline's seeds: for n of them with mean m and standard deviation s, and k fresh ones,
    m +- t(n - 1) x s x sqrt(1/n + 1/k), with t exceeded by a share of ALPHA / metrics.

    metrics: the number of gated metrics.
    """
    mean, now = statistics.fmean(baseline), statistics.fmean(fresh)
    margin = prediction_margin(baseline, len(fresh), ALPHA / metrics) + _ROUNDING * max(1.0, abs(mean))
    gain = now - mean if better == "higher" else mean - now
    if gain < -margin:
        return "worse"
    return "suspicious" if gain > margin else "pass"


def judge_times(baseline: Sequence[float], fresh: Sequence[float], enough: int) -> Literal["pass", "worse", "suspicious"]:
    """Return the verdict on ratios of times: their median beside the baseline's.

    A timing that another process disturbs is off by tens of percent, so no mean and no standard
    deviation describes several. With `enough` of them a growth by SLOWER is `worse` and a fall by
    FAR `suspicious`; with fewer only a growth by FAR is judged.
    """
    before, now = statistics.median(baseline), statistics.median(fresh)
    is_enough = len(fresh) >= enough
    if now >= (SLOWER if is_enough else FAR) * before * (1 - _ROUNDING):
        return "worse"
    return "suspicious" if is_enough and now * FAR <= before * (1 + _ROUNDING) else "pass"


def unfit(values: Sequence[float]) -> str | None:
    """Return why a metric with these values over a baseline's seeds cannot be a gate; None if it
    can: too few seeds, too few different values, or two groups, say of seeds that learnt and
    that did not."""
    if len(values) < LEAST_SEEDS:
        return f"{len(values)} seeds have a value, {LEAST_SEEDS} are needed"
    if groups := two_groups(values):
        low, high = groups
        return f"bimodal: {len(low)} seeds near {statistics.fmean(low):.4g}, {len(high)} near {statistics.fmean(high):.4g}"
    if len(different := sorted(set(values))) < LEAST_VALUES:
        return f"its seeds have only the values {', '.join(f'{value:g}' for value in different)}, which are no spread to judge by"
    return None


def two_groups(values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """Return the low and the high values if they form two groups; None if they form one."""
    ordered = sorted(values)
    mean = statistics.fmean(ordered)
    total = math.fsum((value - mean) ** 2 for value in ordered)
    if not total:
        return None
    splits = [(ordered[:place], ordered[place:]) for place in range(1, len(ordered))]
    low, high = min(splits, key=lambda split: _within(*split))
    apart = abs(statistics.fmean(high) - statistics.fmean(low))
    is_wide = apart >= APART * max(abs(statistics.fmean(low)), abs(statistics.fmean(high)))
    return (low, high) if is_wide and 1 - _within(low, high) / total >= TWO_GROUPS else None


def _within(low: Sequence[float], high: Sequence[float]) -> float:
    """Return the sum of squares inside two groups."""
    means = [math.fsum(group) / len(group) for group in (low, high)]
    return math.fsum((value - mean) ** 2 for group, mean in zip((low, high), means, strict=True) for value in group)
