"""The arguments of `extend`. Their types are checked here, before anything of the model is touched."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import nn

from longwave.rules import Rule
from longwave.schedule import Schedule
from longwave.trajectory import Trajectory


def _is(value: Any, *kinds: type) -> bool:
    """An instance of the kinds; true and false are no numbers."""
    return isinstance(value, kinds) and not isinstance(value, bool)


ARGUMENTS = {
    "method": Rule(
        lambda value: _is(value, str), "a name such as 'yarn'; see longwave.METHODS and longwave.ATTENTIONS"
    ),
    "max_factor": Rule(
        lambda value: _is(value, Real) and 1 <= value < math.inf, "a finite number >= 1; 8 means 8 times the length"
    ),
    "schedule": Rule(
        lambda value: value is None or _is(value, str, Schedule),
        "continuous, ceiling, threshold, static=FACTOR, steps=1/2/4, or a longwave.Schedule",
    ),
    "log_n": Rule(
        lambda value: value is None or isinstance(value, bool) or (_is(value, Real) and value >= 0),
        "True, False or an exponent >= 0",
    ),
    "original_length": Rule(
        lambda value: value is None or (_is(value, Integral) and value >= 2), "at least 2 tokens, a whole number"
    ),
    "trajectory": Rule(lambda value: value is None or _is(value, Trajectory), "a longwave.Trajectory"),
}


def check_arguments(**given: Any) -> None:
    """A `ValueError` for the first argument whose value is not allowed. It says what is allowed."""
    for name, value in given.items():
        if not ARGUMENTS[name].allows(value):
            allowed, _, more = ARGUMENTS[name].words.partition("; ")
            hint = f" {more[0].upper()}{more[1:]}." if more else ""
            raise ValueError(f"{name} must be {allowed}, got {value!r}.{hint}")


def check_model(model: Any, function: str) -> None:
    """A `ValueError` for what is no model, a path for example."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{function} takes a model, got {type(model).__name__}. Load it first: longwave.load(path).")
