"""What the number of an evaluation is: how it is combined, compared, checked and written, whatever it measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from longwave.evaluation.statistics import Interval
from longwave.outside import Outside

Entry = Mapping[str, Any]  # of `lengths` in a row of a record


@dataclass(frozen=True)
class Parts:
    """Values by place, which an entry may give beside its own value.

    Arguments:
        key: the key of their list in an entry.
        numbers: the keys of each item of that list.
    """

    key: str
    numbers: tuple[str, ...]


BY_POSITION = Parts("by_position", ("start", "end", "nll"))  # stretches of a window
ALONG = "-by-position"  # what the figure of these parts has behind the name of the record
BY_DEPTH = Parts("by_depth", ("depth", "rate"))  # places in a prompt


@dataclass(frozen=True)
class Quantity(ABC):
    """A number that is measured at several lengths.

    Arguments:
        title: the title of its sections and plots: `Perplexity`.
        noun: its name on axes and in sentences: `perplexity`, `passkeys retrieved`.
        key: the key of the value in an entry.
        unit: what is drawn at random, in the singular: `window`, `trial`.
        words: (settings of a record) -> how it was measured, in words; empty if there is nothing to say.
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
        """The name of a value within a sentence: `perplexity`, `share of passkeys retrieved`."""

    @property
    @abstractmethod
    def parts(self) -> Parts | None:
        """The values by place that an entry may give; None for none."""

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
        """The names with the best value: several if their values are equal."""
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
        """How it was measured, and with how many units at each length, in words."""

    @abstractmethod
    def combine(self, runs: Sequence[Entry]) -> Interval:
        """The value of one or several runs at one length, with its 95 % interval."""

    @abstractmethod
    def compare(self, a: Sequence[Entry], b: Sequence[Entry]) -> Interval:
        """Row a against row b at one length, each with one or several runs.

        Raises:
            ValueError: if they cannot be compared.
        """

    @abstractmethod
    def text(self, value: float) -> str:
        """A value as it is written."""

    @abstractmethod
    def bounds(self, interval: Interval) -> str:
        """An interval as it is written below a value."""

    @abstractmethod
    def beside(self, interval: Interval) -> str:
        """An interval as it is written beside its value; empty for an interval of no width."""

    @abstractmethod
    def check(self, entry: dict[str, Any], outside: Outside) -> None:
        """Refuse an entry of a file that lacks a field, or has a wrong value in one."""

    def check_common(self, entry: Any, own: Sequence[str], outside: Outside) -> None:
        """The part of `check` that all quantities share.

        Arguments:
            own: the fields that this quantity needs besides.
        """
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
