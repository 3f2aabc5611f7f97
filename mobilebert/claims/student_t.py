"""Compute Student's t distribution; SciPy is no dependency of the package."""

from __future__ import annotations

import math
from functools import lru_cache

_SMALLEST = 1e-300
_DIGITS = 1e-15


def tail(t: float, df: float) -> float:
    """Return the probability that a t variable of `df` degrees of freedom exceeds `t`."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return half if t >= 0 else 1 - half


@lru_cache(maxsize=1024)
def quantile(probability: float, df: float) -> float:
    """Return t such that a t variable lies below it with `probability`, above 0 and below 1."""
    if probability < 0.5:
        return -quantile(1 - probability, df)
    wanted, t = 1 - probability, 0.0
    # The tail is convex above 0, so Newton's steps from 0 grow towards the root and never pass it.
    for _ in range(500):
        step = (tail(t, df) - wanted) / _density(t, df)
        t += step
        if step <= _DIGITS * t:
            break
    return t


def _density(t: float, df: float) -> float:
    logarithm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return math.exp(logarithm - (df + 1) / 2 * math.log1p(t * t / df))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function, by Lentz's continued fraction.

    Source: Abramowitz and Stegun, 26.5.8.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below this point
        return 1 - _incomplete_beta(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        before = fraction
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            fraction *= c * d
        if abs(fraction - before) <= _DIGITS * abs(fraction):
            break
    return math.exp(logarithm) * fraction / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
