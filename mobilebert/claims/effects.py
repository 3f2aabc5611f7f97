"""Estimate the effects that claims are about, each with its standard error.

An effect is positive if the claim's `better` side is ahead. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WIDEST = 3.0  # a row whose spread is over this many times the median row's cannot be judged
MANY = 1e4  # degrees of freedom of a variance that is as good as known


@dataclass(frozen=True)
class Effect:
    """An estimate with its standard error and the degrees of freedom of that error.

    n: how many seeds, rows or processes it rests on; an error of infinity means that n is too small
    for one.
    """

    value: float
    error: float
    df: float
    n: int
    name: str = ""


# --- held-out losses


def spreads(losses: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Return the standard deviation over seeds of every row that has at least two."""
    return {row: float(np.std(list(runs.values()), ddof=1)) for row, runs in losses.items() if len(runs) > 1}


def too_wide(losses: Mapping[str, Mapping[int, float]]) -> set[str]:
    """Return the rows whose spread is over WIDEST times the median row's."""
    found = spreads(losses)
    limit = WIDEST * float(np.median(list(found.values()))) if found else 0.0
    return {row for row, spread in found.items() if spread > limit}


def contrast(losses: Mapping[str, Mapping[int, float]], weights: Mapping[str, float], pooled: Collection[str]) -> Effect:
    """Return a weighted sum of rows' mean losses, from an analysis of variance blocked by seed.

    losses: row -> seed -> loss. weights: row -> its weight; they sum to 0. pooled: further rows
    whose residuals give the common variance. The model is a loss = row + seed + residual.
    """
    rows = [row for row in losses if row in weights or row in pooled]
    seeds = sorted({seed for row in rows for seed in losses[row]})
    cells = tuple((rows.index(row), len(rows) + seeds.index(seed)) for row in rows for seed in losses[row])
    values = np.array([loss for row in rows for loss in losses[row].values()])
    design, inverse, df = _design(cells, len(rows) + len(seeds))
    estimate = inverse @ design.T @ values
    direction = np.array([weights.get(row, 0.0) for row in rows] + [0.0] * len(seeds))
    value = float(direction @ estimate)
    n = len(set.intersection(*(set(losses[row]) for row in weights)))
    if df < 1:
        return Effect(value, math.inf, 1, n)
    residual = float(np.sum((values - design @ estimate) ** 2)) / df
    return Effect(value, math.sqrt(residual * float(direction @ inverse @ direction)), df, n)


@lru_cache(maxsize=64)  # the claims of a study share a few designs
def _design(cells: tuple[tuple[int, int], ...], columns: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the design matrix, the inverse of its square and the residuals' degrees of freedom.

    cells: the two columns, of row and seed, that are 1 for each loss.
    """
    design = np.zeros((len(cells), columns))
    for number, ones in enumerate(cells):
        design[number, list(ones)] = 1
    return design, np.linalg.pinv(design.T @ design), len(cells) - int(np.linalg.matrix_rank(design))


# --- answers to the same rows


def paired_over_tasks(tasks: Sequence[Mapping[int, np.ndarray]]) -> Effect:
    """Return the mean over tasks of the mean difference in percentage points.

    tasks: for each, seed -> (rows,) of -1, 0 or 1. The rows of tasks are independent, but a seed's
    models are not: one pre-training stands behind all its tasks. So if all tasks have the same
    seeds, the variance between seeds is that of each seed's mean over the tasks.
    """
    seeds = sorted(tasks[0])
    if len(seeds) == 1 or any(sorted(task) != seeds for task in tasks):
        return mean_of([paired(task) for task in tasks])
    rows = [paired({0: np.mean([task[seed] for seed in seeds], axis=0)}) for task in tasks]
    mean = mean_of(rows)
    by_seed = [100 * float(np.mean([task[seed].mean() for task in tasks])) for seed in seeds]
    error, df = _total([(mean.error**2, mean.df), (float(np.var(by_seed, ddof=1)) / len(seeds), len(seeds) - 1.0)])
    return Effect(mean.value, error, df, mean.n)


def paired(differences: Mapping[int, np.ndarray]) -> Effect:
    """Return the mean difference in percentage points between two arms that answered the same rows.

    differences: seed -> (rows,) of -1, 0 or 1. The variance of the rows counts one more row that
    only the one arm answers and one that only the other does (Bonett and Price 2012), so that equal
    answers still have an error. With several seeds the variance between seeds is added.
    """
    table = np.stack([differences[seed] for seed in sorted(differences)]).astype(float)
    seeds, rows = table.shape
    by_row = np.append(table.mean(axis=0), [1.0, -1.0])
    parts = [(float(by_row.var(ddof=1)) / (rows + 2), rows + 1.0)]
    if seeds > 1:
        parts.append((float(table.mean(axis=1).var(ddof=1)) / seeds, seeds - 1.0))
    error, df = _total(parts)
    return Effect(100 * float(table.mean()), 100 * error, df, rows)


def mean_of(effects: Sequence[Effect]) -> Effect:
    """Return the mean of independent effects, for example of one on several tasks.

    Its n is the sum of theirs.
    """
    count = len(effects)
    error, df = _total([((effect.error / count) ** 2, effect.df) for effect in effects])
    return Effect(sum(effect.value for effect in effects) / count, error, df, sum(effect.n for effect in effects))


def _total(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the root of a sum of variances, and Satterthwaite's degrees of freedom.

    parts: (variance, degrees of freedom).
    """
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    return math.sqrt(variance), min(MANY, variance**2 / spread) if spread else MANY


# --- ratios and scores


def log_ratio(ratios: Sequence[float]) -> Effect:
    """Return the mean logarithm of ratios, one from each set of fresh processes."""
    logarithms = np.log(np.asarray(ratios, dtype=float))
    n = len(logarithms)
    error = float(logarithms.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Effect(float(logarithms.mean()), error, max(1, n - 1), n)


def score_difference(better: Sequence[float], than: Sequence[float] | None, row_variances: Sequence[float]) -> Effect:
    """Return the difference of two mean scores in points, or the one mean score if `than` is None.

    better, than: a score for every seed. row_variances: the variance of each side over its rows,
    which count as many. The variance between seeds is pooled over both sides; with one seed a side
    the rows alone count.
    """
    sides = [np.asarray(side, dtype=float) for side in (better, than) if side is not None]
    value = float(sides[0].mean()) - (float(sides[1].mean()) if len(sides) == 2 else 0.0)
    parts = [(variance, math.inf) for variance in row_variances]
    df = sum(len(side) - 1 for side in sides)
    if df:
        between = sum(float(np.sum((side - side.mean()) ** 2)) for side in sides) / df
        parts.append((between * sum(1 / len(side) for side in sides), float(df)))
    error, degrees = _total(parts)
    return Effect(value, error, degrees, min(len(side) for side in sides))
