"""What the number of an evaluation is: how it is combined, compared, checked and written, whatever it measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from longwave.evaluation.outside import Outside
from longwave.evaluation.statistics import Interval

Entry = Mapping[str, Any]  # of `lengths` in a row of a record


@dataclass(frozen=True)
class Parts:
    """Numbers that an entry may give beside its value, by place.

    Arguments:
        key: of their list in an entry.
        numbers: that each item of the list has.
    """

    key: str
    numbers: tuple[str, ...]


BY_POSITION = Parts("by_position", ("start", "end", "nll"))  # stretches of a window
BY_DEPTH = Parts("by_depth", ("depth", "rate"))  # places in a prompt


@dataclass(frozen=True)
class Quantity(ABC):
    """A number that is measured at several lengths.

    Arguments:
        title: of its sections and plots: `Perplexity`.
        noun: on axes and in sentences: `perplexity`, `passkeys retrieved`.
        key: of the value in an entry.
        unit: what is drawn at random, in the singular: `window`, `trial`.
        words: settings of a record -> what was done, in words; empty for nothing to add.
    """

    title: str
    noun: str
    key: str
    unit: str = ""
    words: Callable[[Mapping[str, Any]], str] = lambda settings: ""

    by_length: ClassVar[bool] = True
    scale: ClassVar[Literal["log", "share"]]
    lower_is_better: ClassVar[bool]
    equal: ClassVar[float]  # what `compare` gives for two rows that are equal
    intervals: ClassVar[str]  # by which rows are compared
    enough: ClassVar[int]  # units; fewer do not tell rows apart
    legend: ClassVar[str]  # of `beside`

    @property
    @abstractmethod
    def measure(self) -> str:
        """What a value is, within a sentence: `perplexity`, `share of passkeys retrieved`."""

    @property
    @abstractmethod
    def parts(self) -> Parts | None:
        """What an entry may give by place beside its value."""

    @property
    def caption(self) -> str:
        """`measure` at the start of a sentence."""
        return self.measure[:1].upper() + self.measure[1:]

    @property
    def superlative(self) -> str:
        return "lowest" if self.lower_is_better else "highest"

    def value(self, entry: Entry) -> float:
        """What was measured at one length."""
        return float(entry[self.key])

    def best(self, values: Mapping[str, float]) -> list[str]:
        """The names of the best value; several where they are equal."""
        best = (min if self.lower_is_better else max)(values.values())
        return [name for name, value in values.items() if math.isclose(value, best, rel_tol=1e-9)]

    def line(self, entries: Iterable[Entry]) -> str:
        """The values of a row: `5.00 at 64, 6.00 at 128`."""
        return ", ".join(f"{self.text(self.value(entry))} at {entry['length']:,}" for entry in entries)

    @abstractmethod
    def count(self, entry: Entry) -> int:
        """How many units an entry has."""

    @abstractmethod
    def about(self, settings: Mapping[str, Any], entries: Sequence[Entry]) -> str:
        """What was measured, in words: how, and how many units at each length."""

    @abstractmethod
    def combine(self, runs: Sequence[Entry]) -> Interval:
        """The value of one or several runs at one length, with its 95 % interval."""

    @abstractmethod
    def compare(self, a: Sequence[Entry], b: Sequence[Entry]) -> Interval:
        """The runs of row a against those of row b at one length; a `ValueError` if they cannot be compared."""

    @abstractmethod
    def text(self, value: float) -> str:
        """A value as it is written."""

    @abstractmethod
    def bounds(self, interval: Interval) -> str:
        """An interval as it is written below a value."""

    @abstractmethod
    def beside(self, interval: Interval) -> str:
        """An interval as it is written beside a value; empty where there is none."""

    @abstractmethod
    def check(self, entry: dict[str, Any], outside: Outside) -> None:
        """Refuse an entry of a file that lacks something, or holds something else than it must."""

    def check_common(self, entry: Any, own: Sequence[str], outside: Outside) -> None:
        """The part of `check` that every quantity has in common; `own` fields are those that it needs besides."""
        outside.require(entry, ("length", "factor", self.key, "interval", *own), "an entry of lengths")
        outside.counts(entry, ("length",))
        outside.numbers(entry, (self.key,))
        if entry["factor"] is not None:
            outside.numbers(entry, ("factor",))
        if entry["interval"] is not None:
            outside.series(entry["interval"], "interval", 2)
        if self.parts is not None and entry.get(self.parts.key):
            for part in outside.filled(entry[self.parts.key], self.parts.key):
                outside.numbers(part, self.parts.numbers)
