"""From the length of a sequence to the length factor t = n/L that its frequencies are taken at.

A schedule is orthogonal to the method: "dynamic NTK" is NTK under `Continuous`, the `yarn` of a
transformers config is YaRN under `Static`, and CLEX as published runs under `Ceiling`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


class Schedule(ABC):
    """Maps n tokens to t >= 1. Not clipped at the method's maximum: who calls it decides what to do there."""

    @abstractmethod
    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        """t for a sequence of `length` tokens on a model pre-trained at `original_length` tokens."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The text that `parse_schedule` reads back."""


@dataclass(frozen=True)
class Static(Schedule):
    """t = factor at every length: what config switches of serving engines do."""

    factor: float

    @property
    def largest(self) -> float:
        return self.factor

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise ValueError(f"static factor must be a number >= 1, got {self.factor}.")

    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        return float(self.factor)

    @property
    def spec(self) -> str:
        return f"static={_shortest(self.factor)}"


@dataclass(frozen=True)
class Ceiling(Schedule):
    """t = max(1, ⌈n/L⌉), the whole factors of the CLEX paper (arXiv 2310.16450)."""

    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        return float(max(1, -(-length // original_length)))

    @property
    def spec(self) -> str:
        return "ceiling"


@dataclass(frozen=True)
class Continuous(Schedule):
    """t = max(1, n/L): no more scaling than the length needs, none within L."""

    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        return max(1.0, length / original_length)

    @property
    def spec(self) -> str:
        return "continuous"


@dataclass(frozen=True)
class Threshold(Schedule):
    """t = 1 within L and the maximum beyond it, the switch of LongRoPE (arXiv 2402.13753)."""

    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        # A sequence beyond the maximum keeps its own n/L, so that the caller sees that it does not fit.
        return 1.0 if length <= original_length else max(float(max_factor), length / original_length)

    @property
    def spec(self) -> str:
        return "threshold"


@dataclass(frozen=True)
class Steps(Schedule):
    """t = the least of some factors that the length needs, as engines with profiles have it; n/L beyond the largest."""

    factors: tuple[float, ...]

    @property
    def largest(self) -> float:
        return self.factors[-1]

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in pairwise(self.factors))
        if not (self.factors and rises and all(math.isfinite(each) and each >= 1 for each in self.factors)):
            raise ValueError(f"steps must be numbers >= 1 that rise, got {', '.join(map(str, self.factors))}.")

    def __call__(self, length: int, original_length: int, max_factor: float) -> float:
        enough = (each for each in self.factors if length <= tokens_at(each, original_length))
        return next(enough, length / original_length)

    @property
    def spec(self) -> str:
        return f"steps={'/'.join(map(_shortest, self.factors))}"


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "continuous": Continuous,
    "ceiling": Ceiling,
    "threshold": Threshold,
}


def parse_schedule(spec: str) -> Schedule:
    """Read `continuous`, `ceiling`, `threshold`, `static=FACTOR` or `steps=1/2/4`; anything else is a `ValueError`."""
    if spec in SCHEDULES:
        return SCHEDULES[spec]()
    name, separator, value = spec.partition("=")
    if name == "static" and separator:
        try:
            factor = float(value)
        except ValueError:
            raise ValueError(f"static factor must be a number, got {value!r}: write static=8.") from None
        return Static(factor)
    if name == "steps" and separator:
        try:
            factors = tuple(float(each) for each in value.split("/"))
        except ValueError:
            raise ValueError(f"steps must be numbers, got {value!r}: write steps=1/2/4.") from None
        return Steps(factors)
    raise ValueError(f"unknown schedule {spec!r}. Available: {', '.join(SCHEDULES)}, static=FACTOR, steps=1/2/4.")


def _shortest(factor: float) -> str:
    short = f"{factor:g}"
    return short if float(short) == factor else repr(float(factor))


def tokens_at(factor: float, original_length: int) -> int:
    """⌊t·L⌋, the tokens that t is for.

    t·L is a product of floats: for t = 8.2 and L = 1000 it comes out as 8199.999999999999. What lies within rounding
    of a whole number is that number.
    """
    product = factor * original_length
    nearest = round(product)
    return nearest if math.isclose(product, nearest, rel_tol=1e-12) else math.floor(product)


def factor_of(length: int, original_length: int) -> float:
    """The smallest t >= 1 with ⌊t·L⌋ >= length, see `tokens_at`."""
    return max(1.0, length / original_length)
