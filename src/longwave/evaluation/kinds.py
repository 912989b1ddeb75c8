"""The two kinds of quantity, a loss and a share, and the scores of tasks.

A new evaluation picks `Loss` or `Share` and gives it a title, a noun and the key of its value. Tables, plots, the
report and the check of a record follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar, Literal

from longwave.evaluation.quantity import BY_DEPTH, BY_POSITION, Entry, Parts, Quantity
from longwave.evaluation.statistics import Interval, difference, paired_bootstrap, wilson
from longwave.evaluation.writing import counted, decimals, number, percent
from longwave.outside import Outside

SAMPLES = 2_000  # of a bootstrap that only has to say on which side of 1 a ratio is


@dataclass(frozen=True)
class Loss(Quantity):
    """exp of a mean loss over windows, such as perplexity. Every entry keeps the loss of each window."""

    unit: str = "window"

    scale: ClassVar[Literal["log", "share"]] = "log"
    lower_is_better: ClassVar[bool] = True
    equal: ClassVar[float] = 1.0
    intervals: ClassVar[str] = "paired 95 % intervals"
    # With fewer, the bootstrap's 95 % intervals tell rows that are alike apart far more often than 5 times in 100.
    enough: ClassVar[int] = 16
    legend: ClassVar[str] = "± half of the 95 % interval"

    @property
    def measure(self) -> str:
        return self.noun

    @property
    def parts(self) -> Parts:
        return BY_POSITION

    def count(self, entry: Entry) -> int:
        return len(entry["nll"])

    def about(self, settings: Mapping[str, Any], entries: Sequence[Entry]) -> str:
        units = counted(min(self.count(entry) for entry in entries), self.unit)
        return ", ".join(part for part in (self.words(settings), units) if part)

    def combine(self, runs: Sequence[Entry]) -> Interval:
        """One run keeps the interval of its record; several are resampled together with their windows."""
        if len(runs) == 1:
            value, interval = self.value(runs[0]), runs[0]["interval"]
            return Interval(value, *(interval or (value, value)))
        if len(runs[0]["nll"]) == 1:  # no interval, as for one run of one window
            check_windows(runs)
            value = math.exp(mean(run["nll"][0] / run["tokens"][0] for run in runs))
            return Interval(value, value, value)
        certain = {**runs[0], "nll": [0.0] * len(runs[0]["nll"])}  # perplexity 1 everywhere: the ratio is the value
        return compare(runs, [certain])

    def compare(self, a: Sequence[Entry], b: Sequence[Entry]) -> Interval:
        return compare(a, b, samples=SAMPLES)

    def text(self, value: float) -> str:
        return number(value)

    def bounds(self, interval: Interval) -> str:
        return f"{number(interval.low)} – {number(interval.high)}"

    def beside(self, interval: Interval) -> str:
        half = (interval.high - interval.low) / 2
        places = decimals(interval.value if round(half, decimals(interval.value)) else half)
        return f" ±{half:,.{places}f}" if half else ""

    def check(self, entry: dict[str, Any], outside: Outside) -> None:
        self.check_common(entry, ("windows", "ends", "nll", "tokens"), outside)
        outside.columns(entry, ("ends", "nll", "tokens"))


@dataclass(frozen=True)
class Share(Quantity):
    """A share of trials that succeeded. Every entry keeps the outcome of each trial.

    Arguments:
        place: what lies at a depth of the prompt, `needle` for example; empty if nothing does.
        mapped: whether it is shown as a map of lengths and depths.
    """

    unit: str = "trial"
    place: str = ""
    mapped: bool = False

    scale: ClassVar[Literal["log", "share"]] = "share"
    lower_is_better: ClassVar[bool] = False
    equal: ClassVar[float] = 0.0
    intervals: ClassVar[str] = "95 % intervals"
    enough: ClassVar[int] = 1  # Wilson's intervals are honest for any number of trials
    legend: ClassVar[str] = "with 95 % interval"

    def __post_init__(self) -> None:
        if self.mapped and not self.place:
            raise ValueError(f"{self.title} is mapped by depth, so `place` must say what lies at a depth.")

    @property
    def measure(self) -> str:
        return f"share of {self.noun}"

    @property
    def parts(self) -> Parts | None:
        return BY_DEPTH if self.place else None

    def count(self, entry: Entry) -> int:
        return len(entry["correct"])

    def about(self, settings: Mapping[str, Any], entries: Sequence[Entry]) -> str:
        depths = len(entries[0].get("by_depth") or ()) if self.place else 0
        at = f" at {counted(depths, 'depth')}" if depths else ""
        units = f"{counted(min(self.count(entry) for entry in entries), self.unit)}{at} for each length"
        return ", ".join(part for part in (self.words(settings), units) if part)

    def combine(self, runs: Sequence[Entry]) -> Interval:
        """The share of all trials of all runs."""
        hits = [hit for run in runs for hit in run["correct"]]
        return wilson(sum(hits), len(hits))

    def compare(self, a: Sequence[Entry], b: Sequence[Entry]) -> Interval:
        return difference(self.combine(a), self.combine(b))

    def text(self, value: float) -> str:
        return percent(value)

    def bounds(self, interval: Interval) -> str:
        return f"{100 * interval.low:.0f} – {percent(interval.high)}"

    def beside(self, interval: Interval) -> str:
        return f" {100 * interval.low:.0f}–{100 * interval.high:.0f}"

    def check(self, entry: dict[str, Any], outside: Outside) -> None:
        depths = ("by_depth",) if self.place else ()
        self.check_common(entry, ("trials", "correct", *depths), outside)
        hits = outside.filled(entry["correct"], "correct")
        if not all(isinstance(hit, bool) for hit in hits):
            raise outside.damaged("its correct must be true or false for each trial")
        if self.mapped:
            outside.require(entry, ("depths",), "an entry of lengths")
        if self.place and "depths" in entry:
            outside.series(entry["depths"], "depths", len(hits))


@dataclass(frozen=True)
class Scores:
    """Scores of tasks. Each task has its own metric and no lengths, so a score is shown alone."""

    title: str

    by_length: ClassVar[bool] = False


def compare(a: Sequence[Entry], b: Sequence[Entry], **options: Any) -> Interval:
    """Paired bootstrap of two rows of losses at one length. A ratio below 1 favours a.

    Arguments:
        a, b: the entry of each run of the row, at that length.
        options: those of `paired_bootstrap`.

    Raises:
        ValueError: if the windows are not the same ones.
    """
    check_windows([*a, *b])
    return paired_bootstrap([entry["nll"] for entry in a], [entry["nll"] for entry in b], a[0]["tokens"], **options)


def check_windows(entries: Sequence[Entry]) -> None:
    """Refuse entries of different windows."""
    if any(entry[key] != entries[0][key] for entry in entries for key in ("ends", "tokens")):
        raise ValueError("the rows were measured on different windows. Evaluate both with one protocol and data.")
