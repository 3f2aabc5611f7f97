"""Student's t distribution against SciPy."""

import math

import pytest
from scipy import stats

from mobilebert.claims.student_t import quantile, tail

DEGREES = (1, 1.5, 2, 3, 7.25, 14, 100, 1e4)


@pytest.mark.parametrize("df", DEGREES)
def test_tails_equal_scipys(df):
    for t in (-8.0, -1.0, 0.0, 0.3, 1.0, 2.5, 6.0, 40.0, 1e4):
        assert tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9, abs=1e-290)
    assert tail(math.inf, df) == 0
    assert tail(-math.inf, df) == 1


@pytest.mark.parametrize("df", DEGREES)
def test_quantiles_equal_scipys(df):
    for probability in (0.01, 0.5, 0.6, 0.8, 0.975, 0.99375, 0.9999):
        assert quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-9, abs=1e-12)
