"""Learning-rate multipliers at their end points, and the table of stages of progressive transfer."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilebert.training.schedule import linear, stage, stage_curve


def test_linear_end_points():
    assert linear(0, 500_000, 10_000) == 1 / 10_000
    assert linear(9_999, 500_000, 10_000) == 1.0
    assert linear(10_000, 500_000, 10_000) == 1.0
    assert linear(255_000, 500_000, 10_000) == pytest.approx(0.5)
    assert linear(500_000, 500_000, 10_000) == 0.0
    assert linear(500_000, 500_000, 10_000, end=1e-4) == pytest.approx(1e-4)
    assert linear(255_000, 500_000, 10_000, end=0.5) == pytest.approx(0.75)


def test_linear_without_warmup_starts_at_the_peak():
    assert [linear(step, 4, 0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@given(st.data(), st.integers(2, 2000), st.sampled_from([0.0, 1e-4, 0.3]))
def test_linear_rises_then_falls_in_equal_steps(data, steps, end):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [linear(step, steps, warmup, end) for step in range(steps)]
    assert max(rates) == pytest.approx(1.0, abs=1e-12)
    assert min(rates) >= min(end, 1 / max(1, warmup)) - 1e-12
    rises = [b - a for a, b in pairwise(rates[:warmup])]
    assert rises == pytest.approx([1 / warmup] * len(rises) if warmup else [])
    falls = [a - b for a, b in pairwise(rates[warmup:])]
    assert falls == pytest.approx([(1 - end) / (steps - warmup)] * len(falls))


def test_stages_at_full_scale():
    """Paper section 3.5: 240,000 steps over 24 layers, 10,000 each."""
    for layer in range(24):
        assert stage(10_000 * layer, 240_000, 24) == (layer, 0, 10_000)
        assert stage(10_000 * layer + 9_999, 240_000, 24) == (layer, 9_999, 10_000)


def test_a_remainder_goes_to_the_last_layer():
    table = [stage(step, 11, 4) for step in range(11)]
    assert [layer for layer, _, _ in table] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert [within for _, within, _ in table] == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 4]
    assert [length for _, _, length in table] == [2] * 6 + [5] * 5


@given(st.integers(1, 30), st.integers(0, 400))
def test_stages_follow_one_another(layers, more):
    steps = layers + more
    table = [stage(step, steps, layers) for step in range(steps)]
    each = steps // layers
    wanted = [each] * (layers - 1) + [steps - each * (layers - 1)]
    expected = [(layer, within, length) for layer, length in enumerate(wanted) for within in range(length)]
    assert table == expected


def test_stage_curve_at_full_scale():
    curve = [stage_curve(step, 10_000) for step in range(10_000)]
    assert curve[0] == 1 / 1000
    assert curve[499] == 0.5
    assert curve[999] == curve[1000] == 1.0
    assert curve[1000 + 2250] == pytest.approx(0.95)  # a quarter of the way: half of the fall
    assert curve[-1] == pytest.approx(0.9, abs=1e-5)
    assert stage_curve(10_000, 10_000) == pytest.approx(0.9)


@given(st.integers(1, 500))
def test_stage_curve_rises_in_the_first_tenth_and_then_falls_to_nine_tenths(steps):
    curve, warmup = [stage_curve(step, steps) for step in range(steps)], max(1, steps // 10)
    assert all(a < b for a, b in pairwise(curve[:warmup]))
    assert curve[warmup - 1] == 1.0
    assert all(a >= b for a, b in pairwise(curve[warmup:]))
    assert all(0.9 <= rate <= 1.0 for rate in curve[warmup:])
