"""Numbers that change over training."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collegium.base.schedule import Schedule, largest, smallest, value_at


shares = st.floats(0, 1)


def test_linear_and_cosine_between_their_moments():
    linear = Schedule("linear", 1.0, 3.0, 0.25, 0.75)
    assert [linear.at(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    cosine = Schedule("cosine", 1.0, 0.0)
    assert cosine.at(0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert cosine.at(0.5) == pytest.approx(0.5)


def test_step_jumps_and_constant_stays():
    step = Schedule("step", 0.0, 1.0, begin=0.6)
    assert [step.at(x) for x in (0.0, 0.59, 0.6, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert Schedule("constant", 0.3, 9.0).at(1.0) == 0.3


@given(st.sampled_from(["constant", "linear", "cosine", "step"]), shares, shares, shares)
def test_a_schedule_stays_between_its_ends(shape, initial, final, progress):
    schedule = Schedule(shape, initial, final, 0.2, 0.9)
    assert smallest(schedule) - 1e-12 <= schedule.at(progress) <= largest(schedule) + 1e-12


def test_a_number_is_a_schedule_too():
    assert value_at(0.4, 0.9) == largest(0.4) == smallest(0.4) == 0.4
