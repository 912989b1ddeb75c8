import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longwave.schedule import Ceiling, Continuous, Static, Steps, Threshold, parse_schedule

SPECS = ["continuous", "ceiling", "threshold", "static=8", "static=5.333333333333333", "steps=1/2.5/5.333333333333333"]


@pytest.mark.parametrize("spec", SPECS)
def test_spec_round_trips(spec):
    assert parse_schedule(spec).spec == spec


@given(length=st.integers(1, 10**7), original=st.integers(2, 10**5))
def test_dynamic_schedules_cover_the_length_and_leave_short_ones_alone(length, original):
    for schedule in (Ceiling(), Continuous(), Threshold(), Steps((1.0, 2.0, 8.2))):
        t = schedule(length, original, 16.0)
        assert t >= 1
        assert t * original >= length * (1 - 1e-12)
        if length <= original:
            assert t == 1


@given(length=st.integers(1, 10**6), original=st.integers(2, 10**4))
def test_ceiling_is_the_next_whole_factor(length, original):
    assert Ceiling()(length, original, 16) == max(1, math.ceil(length / original))


def test_static_and_threshold():
    assert Static(8)(5, 256, 16) == 8
    assert Threshold()(257, 256, 16) == 16


def test_steps_are_the_least_factor_that_is_enough():
    steps = Steps((1.0, 2.0, 8.2))
    assert [steps(length, 1000, 16) for length in (1, 1000, 1001, 2001, 8200, 8201)] == [1, 1, 2, 8.2, 8.2, 8.201]


@pytest.mark.parametrize(
    "spec",
    [
        "sometimes",
        "static",
        "static=",
        "static=x",
        "static=0.5",
        "static=nan",
        "steps=2/1",
        "steps=",
        "steps=0.5",
        "steps=1/x",
    ],
)
def test_unknown_schedule_lists_the_choices(spec):
    with pytest.raises(ValueError, match=r"Available|static factor must be|steps must be numbers"):
        parse_schedule(spec)
