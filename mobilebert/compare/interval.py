"""Compute intervals from few values by Student's t, in plain Python: no command waits for SciPy."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

_TINY = 1e-300  # keeps a denominator of the continued fraction from 0


def tail(t: float, freedom: float) -> float:
    """Return the probability that Student's t with `freedom` degrees is above `t`, for t >= 0."""
    return 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@functools.cache
def quantile(above: float, freedom: float) -> float:
    """Return the t that a share `above` (at most 0.5) of Student's distribution lies above."""
    low, high = 0.0, 1.0
    while tail(high, freedom) > above:
        low, high = high, 2 * high
    for _ in range(80):  # each step halves the interval; a float has 53 bits
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > above else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function, by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def prediction_margin(values: Sequence[float], fresh: int, above: float) -> float:
    """Return how far the mean of `fresh` further values lies above the mean of `values` with
    probability `above`, or as far below, if all come from one normal distribution.

    t(n - 1) x s x sqrt(1/n + 1/fresh), for n values with standard deviation s.
    """
    count = len(values)
    return quantile(above, count - 1) * statistics.stdev(values) * math.sqrt(1 / count + 1 / fresh)


def difference_margin(base: Sequence[float], new: Sequence[float], above: float) -> float | None:
    """Return the margin of the difference of two means. None if neither side has two values.

    Welch's if both have a spread; if one side is a single value, the other predicts it.
    """
    if len(base) < 2 or len(new) < 2:
        many, few = (base, new) if len(base) > len(new) else (new, base)
        return prediction_margin(many, 1, above) if len(many) > 1 and few else None
    parts = [statistics.variance(values) / len(values) for values in (base, new)]
    total = sum(parts)
    if total == 0:
        return 0.0
    # Shares of the total: its own square is 0 for very small values.
    freedom = 1 / sum((part / total) ** 2 / (len(values) - 1) for part, values in zip(parts, (base, new), strict=True))
    return quantile(above, freedom) * math.sqrt(total)
