"""Student's test against a numeric integral of his density, and against a printed table."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.evaluation.student_t import paired_t_test, t_tail


REPEATABLE = settings(deadline=None, max_examples=80, derandomize=True)


def share_within(t: float, freedom: int) -> float:
    """P(|T| < t), by Simpson's rule in steps small against the density's width."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    points = np.linspace(0.0, t, 40_001)
    density = scale * (1.0 + points**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.full(len(points), 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return float(2 * (weights * density).sum() * t / 40_000 / 3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 9, 10, 29, 30, 99, 100, 1000])
@pytest.mark.parametrize("t", [1e-6, 0.1, 0.5, 1.0, 2.0, 3.7, 12.0])
def test_tail_is_what_the_density_leaves(t, freedom):
    assert t_tail(t, freedom) == pytest.approx(1 - share_within(t, freedom), abs=1e-11)


@pytest.mark.parametrize(
    ("t", "freedom"),
    [(12.706, 1), (4.303, 2), (3.182, 3), (2.776, 4), (2.571, 5), (2.228, 10), (2.042, 30), (1.984, 100)],
)
def test_five_percent_lie_beyond_the_values_of_the_table(t, freedom):
    assert t_tail(t, freedom) == pytest.approx(0.05, abs=3e-5)


@REPEATABLE
@given(st.floats(0, 1e300), st.integers(1, 60))
def test_tail_is_symmetric_and_a_probability(t, freedom):
    assert t_tail(t, freedom) == t_tail(-t, freedom)
    assert 0.0 <= t_tail(t, freedom) <= 1.0


def test_tail_begins_at_one_and_falls():
    for freedom in (1, 2, 7, 8):
        tails = [t_tail(t, freedom) for t in np.linspace(0, 8, 50)]
        assert tails[0] == 1.0
        assert all(later < earlier for earlier, later in itertools.pairwise(tails))


def test_figures_of_three_differences_by_hand():
    got = paired_t_test([1.0, 2.0, 4.0], confidence=0.95)
    error = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2 / 3)
    assert got.value == pytest.approx(7 / 3)
    assert (got.low, got.high) == pytest.approx((7 / 3 - 4.302653 * error, 7 / 3 + 4.302653 * error), rel=1e-6)
    assert got.p_value == pytest.approx(1 - share_within(7 / 3 / error, 2), abs=1e-10)


@REPEATABLE
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9), st.sampled_from([0.5, 0.9, 0.95]))
def test_turning_the_signs_turns_the_interval(values, confidence):
    got = paired_t_test(values, confidence=confidence)
    turned = paired_t_test([-value for value in values], confidence=confidence)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-got.value, -got.high, -got.low))
    assert turned.p_value == pytest.approx(got.p_value, abs=1e-12)


@REPEATABLE
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7).filter(lambda v: len(set(v)) > 1))
def test_interval_leaves_out_zero_exactly_where_p_is_small(values):
    got = paired_t_test(values, confidence=0.9)
    if abs(got.p_value - 0.1) > 1e-9:
        assert (got.p_value < 0.1) == (got.low > 0 or got.high < 0)


def test_one_value_has_no_spread():
    got = paired_t_test([0.5], confidence=0.95)
    assert got.value == 0.5
    assert all(math.isnan(number) for number in (got.low, got.high, got.p_value))


def test_values_that_do_not_differ_are_certain():
    same = paired_t_test([0.25, 0.25, 0.25], confidence=0.95)
    assert (same.value, same.low, same.high, same.p_value) == (0.25, 0.25, 0.25, 0.0)
    assert paired_t_test([0.0, 0.0], confidence=0.95).p_value == 1.0


def test_values_that_differ_in_the_last_digit_have_a_p_value_of_zero_and_not_below():
    values = [0.1, 0.1, math.nextafter(0.1, 1), 0.1, 0.1]
    assert paired_t_test(values, confidence=0.95).p_value == pytest.approx(0.0, abs=1e-12)
    assert paired_t_test(values, confidence=0.95).p_value >= 0.0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0], [[1.0, 2.0]]])
def test_refuses_what_is_no_list_of_numbers(values):
    with pytest.raises(ValueError, match="one list of finite numbers"):
        paired_t_test(values, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_refuses_a_confidence_that_is_no_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_t_test([1.0, 2.0], confidence=confidence)
