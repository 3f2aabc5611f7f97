"""Effects and their errors against textbook formulas and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from mobilebert.claims import effects

RANDOM = np.random.default_rng(5)


def as_losses(table):
    return {f"row{number}": dict(enumerate(row)) for number, row in enumerate(table.tolist())}


def test_two_rows_give_the_paired_t_test():
    table = RANDOM.normal(5, 0.1, (2, 4))
    found = effects.contrast(as_losses(table), {"row0": -1.0, "row1": 1.0}, [])
    expected = stats.ttest_rel(table[1], table[0])
    assert found.value / found.error == pytest.approx(expected.statistic, rel=1e-9)
    assert (found.df, found.n) == (3, 4)


def test_the_residual_is_pooled_over_rows_and_blocked_by_seed():
    table = RANDOM.normal(5, 0.1, (6, 3)) + np.array([0.0, 5.0, -3.0])  # a seed shifts all rows alike
    weights = {"row0": -1.0, "row1": 2.0, "row2": -1.0}
    found = effects.contrast(as_losses(table), weights, ["row3", "row4", "row5"])
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    variance = (residual**2).sum() / (5 * 2)
    assert found.df == 10
    assert found.value == pytest.approx(-table[0].mean() + 2 * table[1].mean() - table[2].mean())
    assert found.error == pytest.approx(math.sqrt(variance * (1 + 4 + 1) / 3))


def test_a_missing_seed_is_estimated_by_least_squares():
    losses = as_losses(RANDOM.normal(5, 0.1, (4, 3)))
    del losses["row1"][2]
    found = effects.contrast(losses, {"row0": -1.0, "row1": 1.0}, ["row2", "row3"])
    cells = [(int(row[3:]), seed, loss) for row, runs in losses.items() for seed, loss in runs.items()]
    # Treatment coding: an intercept, three rows and two seeds.
    design = np.array([[1, *(row == k for k in (1, 2, 3)), *(seed == k for k in (1, 2))] for row, seed, _ in cells], dtype=float)
    y = np.array([loss for *_, loss in cells])
    estimate, rest, *_ = np.linalg.lstsq(design, y)
    error = math.sqrt(rest[0] / (11 - 6) * np.linalg.inv(design.T @ design)[1, 1])
    assert (found.value, found.error) == (pytest.approx(estimate[1]), pytest.approx(error))
    assert (found.df, found.n) == (5, 2)


def test_one_seed_has_a_value_and_no_error():
    found = effects.contrast({"a": {0: 5.0}, "b": {0: 5.5}}, {"a": -1.0, "b": 1.0}, [])
    assert found.value == pytest.approx(0.5)
    assert found.error == math.inf


def test_a_row_is_too_wide_above_three_times_the_median_row():
    losses = {"a": {0: 0.0, 1: 1.0}, "b": {0: 0.0, 1: 1.0}, "c": {0: 0.0, 1: 3.0}, "d": {0: 7.0}}
    assert effects.too_wide(losses) == set()
    losses["c"][1] = 3.001
    assert effects.too_wide(losses) == {"c"}


def test_paired_answers_have_the_error_of_bonett_and_price():
    before = np.array([1] * 70 + [0] * 30)
    after = np.array([1] * 64 + [0] * 6 + [1] * 2 + [0] * 28)
    found = effects.paired({0: after - before})
    spoilt, mended = (6 + 1) / 102, (2 + 1) / 102
    assert found.value == pytest.approx(-4.0)
    expected = math.sqrt((spoilt + mended - (spoilt - mended) ** 2) / 102)
    assert found.error == pytest.approx(100 * expected, rel=0.01)  # n - 1 in place of n
    assert found.n == 100
    assert effects.paired({0: np.zeros(100)}).error > 0


def test_several_seeds_add_the_variance_between_them():
    rows = RANDOM.integers(-1, 2, (3, 500)).astype(float)
    found = effects.paired(dict(enumerate(rows)))
    by_row = np.append(rows.mean(0), [1, -1])
    over_rows, over_seeds = by_row.var(ddof=1) / 502, rows.mean(1).var(ddof=1) / 3
    assert found.error == pytest.approx(100 * math.sqrt(over_rows + over_seeds))
    assert found.df == pytest.approx((over_rows + over_seeds) ** 2 / (over_rows**2 / 501 + over_seeds**2 / 2))


def test_the_mean_over_tasks_weighs_them_alike():
    parts = [effects.Effect(1.0, 0.3, 10, 100), effects.Effect(2.0, 0.4, 10, 900)]
    found = effects.mean_of(parts)
    assert (found.value, found.n) == (1.5, 1000)
    assert found.error == pytest.approx(0.25)


def test_a_seed_counts_once_over_all_its_tasks():
    tasks = [dict(enumerate(RANDOM.integers(-1, 2, (3, rows)).astype(float))) for rows in (400, 500)]
    found = effects.paired_over_tasks(tasks)
    parts = [effects.paired({0: np.mean(list(task.values()), axis=0)}) for task in tasks]
    over_rows = sum((part.error / 2) ** 2 for part in parts)
    means = np.array([[100 * task[seed].mean() for seed in range(3)] for task in tasks]).mean(0)
    over_seeds = means.var(ddof=1) / 3
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(math.sqrt(over_rows + over_seeds))
    assert found.n == 900
    one = [{0: task[0]} for task in tasks]
    assert effects.paired_over_tasks(one) == effects.mean_of([effects.paired(task) for task in one])


def test_intervals_over_tasks_keep_their_confidence_if_seeds_move_all_tasks_alike():
    generator, missed = np.random.default_rng(1), 0
    for _ in range(300):
        gains = generator.normal(0, 0.006, 3)  # of a pre-training seed, in all its tasks
        chances = [(0.05 + gain / 2, 0.05 - gain / 2) for gain in gains]
        tasks = [
            {seed: generator.choice([1.0, -1.0, 0.0], 1000, p=(*both, 0.9)) for seed, both in enumerate(chances)}
            for _ in range(4)
        ]
        found = effects.paired_over_tasks(tasks)
        missed += abs(found.value) > stats.t.ppf(0.975, found.df) * found.error
    assert missed / 300 < 0.08


def test_ratios_are_averaged_as_logarithms():
    ratios = RANDOM.lognormal(1.0, 0.1, 7)
    found = effects.log_ratio(ratios)
    low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    reach = stats.t.ppf(0.975, 6) * found.error
    assert (found.value - reach, found.value + reach) == (pytest.approx(low), pytest.approx(high))
    assert effects.log_ratio([2.0]).error == math.inf


def test_scores_add_the_rows_variance_and_the_pooled_variance_of_seeds():
    better, than = [90.0, 90.6, 90.3], [89.0, 88.6]
    found = effects.score_difference(better, than, [0.04, 0.09])
    pooled = (2 * np.var(better, ddof=1) + np.var(than, ddof=1)) / 3
    over_seeds = pooled * (1 / 3 + 1 / 2)
    assert found.value == pytest.approx(1.5)
    assert found.error == pytest.approx(math.sqrt(0.13 + over_seeds))
    assert found.df == pytest.approx((0.13 + over_seeds) ** 2 / (over_seeds**2 / 3))
    alone = effects.score_difference([88.0], None, [4.0])
    assert (alone.value, alone.error, alone.df) == (88.0, 2.0, effects.MANY)
