"""Student's t and the intervals, against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from mobilebert.compare.interval import difference_margin, prediction_margin, quantile, tail


@pytest.mark.parametrize("freedom", [1, 2, 4.5, 9, 19, 200])
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 3.9, 40.0])
def test_tail_is_that_of_students_t(t, freedom):
    assert tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 3.3, 9, 19])
@pytest.mark.parametrize("above", [0.5, 0.025, 0.005, 0.0005])
def test_quantile_is_that_of_students_t(above, freedom):
    assert quantile(above, freedom) == pytest.approx(stats.t.isf(above, freedom), rel=1e-9, abs=1e-12)


def test_prediction_margin_covers_the_mean_of_fresh_values():
    """A share of 5 % of 4,000 draws lies above the margin, to four standard errors."""
    draws = np.random.default_rng(0).normal(3, 2, size=(4000, 25))
    above = [row[20:].mean() > row[:20].mean() + prediction_margin(row[:20].tolist(), 5, 0.05) for row in draws]
    assert abs(np.mean(above) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_difference_margin_is_welchs_interval():
    base, new = [1.0, 2.0, 4.0, 3.0], [2.0, 2.5, 7.0]
    wanted = stats.ttest_ind(new, base, equal_var=False).confidence_interval(0.95)
    assert difference_margin(base, new, 0.025) == pytest.approx((wanted.high - wanted.low) / 2, rel=1e-9)


def test_a_single_value_is_judged_by_the_spread_of_the_other_side():
    base = [1.0, 2.0, 4.0, 3.0]
    wanted = stats.t.isf(0.025, 3) * np.std(base, ddof=1) * math.sqrt(1 + 1 / 4)
    assert difference_margin(base, [9.0], 0.025) == pytest.approx(wanted)
    assert difference_margin([9.0], base, 0.025) == pytest.approx(wanted)


def test_two_single_values_have_no_margin_and_constants_a_margin_of_0():
    assert difference_margin([1.0], [2.0], 0.025) is None
    assert difference_margin([1.0, 1.0], [2.0, 2.0], 0.025) == 0


@pytest.mark.parametrize("scale", [1e-120, 1e-3, 1e3, 1e120])
def test_difference_margin_scales_with_the_values(scale):
    base, new = [1.0, 2.0, 4.0, 3.0], [2.0, 2.5, 7.0]
    scaled = difference_margin([scale * value for value in base], [scale * value for value in new], 0.025)
    assert scaled == pytest.approx(scale * difference_margin(base, new, 0.025), rel=1e-9)
