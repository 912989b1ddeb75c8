"""Which values a key of a JSON file may have, as a test and in words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = sys.float_info.max  # JSON allows longer whole numbers, which no float holds


def is_number(value: Any) -> bool:
    """A finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_length(value: Any) -> bool:
    """A whole number of tokens, at least 1; transformers also takes 4096.0 for one."""
    return is_positive(value) and value == int(value)


def are_positive(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_positive, value))


@dataclass(frozen=True)
class Rule:
    """Which values a key may have, and that in words: "a number above 0"."""

    allows: Callable[[Any], bool]
    words: str


ANY = Rule(lambda value: True, "any value")
POSITIVE = Rule(is_positive, "a number above 0")
NOT_NEGATIVE = Rule(lambda value: is_number(value) and value >= 0, "a number of at least 0")
AT_LEAST_1 = Rule(lambda value: is_number(value) and value >= 1, "a number of at least 1")
SHARE = Rule(lambda value: is_positive(value) and value <= 1, "a number above 0, at most 1")
LENGTH = Rule(is_length, "a whole number of tokens above 0")
FACTORS = Rule(are_positive, "a list of numbers above 0")
SECTIONS = Rule(
    lambda value: isinstance(value, list | tuple) and all(is_number(one) and one >= 0 for one in value),
    "a list of numbers of at least 0",
)
SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
ROPE_NAME = Rule(lambda value: isinstance(value, str), "the name of a rope type")
