"""Records sorted into groups that may stand in one table, and what a group says in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longwave.evaluation.results import LOSSES, Curve, Interval, Record, compare, curves
from longwave.files import data_identity
from longwave.report.sources import KINDS, ROW, Source
from longwave.report.tables import number, ratio_text

SAMPLES = 2_000  # of a paired bootstrap: one for each row and length, and the page only says on which side of 1
# With fewer, the bootstrap's 95 % intervals tell rows that are alike apart far more often than 5 times in 100.
ENOUGH_WINDOWS, ENOUGH_RUNS = 16, 5


@dataclass(frozen=True, eq=False)
class Group:
    """Records of one kind, protocol, data and trained length.

    Arguments:
        sources: the records.
        rows: runs of each row by its name in the report, unique within the group.
        curves: the rows' values with intervals, in the order of `rows`.
        suffix: what its title ends in.
    """

    sources: Sequence[Source]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    curves: Sequence[Curve]
    suffix: str = ""

    @property
    def schema(self) -> str:
        return str(self.sources[0].record["schema"])

    @property
    def original_length(self) -> int:
        return int(self.sources[0].record["original_length"])

    @property
    def lengths(self) -> list[int]:
        """Every length that a row was measured at, ascending."""
        return sorted({length for curve in self.curves for length in curve.lengths})

    @property
    def title(self) -> str:
        """Kind, protocol or template, and the names of the data files."""
        record = self.sources[0].record
        settings = record["settings"]
        parts = [KINDS[self.schema], settings.get("protocol") or settings.get("template")]
        names = [Path(path).name for path in record.get("data") or ()]
        parts.append(", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""))
        return " · ".join(str(part) for part in (*parts, self.suffix) if part)

    def values(self, length: int) -> dict[str, Interval]:
        """The value of each row that was measured at `length`."""
        at = {c.label: dict(zip(c.lengths, c.values, strict=True)) for c in self.curves}
        return {label: by_length[length] for label, by_length in at.items() if length in by_length}

    def best(self, length: int) -> list[str]:
        """Rows with the best value at `length`: several where they are equal, none where there is one row only."""
        values = {label: value.value for label, value in self.values(length).items()}
        if len(values) < 2:
            return []
        best = (min if self.schema in LOSSES else max)(values.values())
        return [label for label, value in values.items() if math.isclose(value, best, rel_tol=1e-9)]

    def level(self, length: int, best: str) -> list[str] | None:
        """Other rows that a paired 95 % interval over windows does not tell apart from `best`; None if it cannot."""
        runs = {label: self._entries(label, length) for label in self.values(length)}
        found = []
        for label, entries in runs.items():
            try:
                if label != best and 1 in compare(runs[best], entries, samples=SAMPLES):
                    found.append(label)
            except ValueError:  # other windows, or a number of runs that cannot be paired
                return None
        return found

    def too_few(self, length: int) -> str | None:
        """What there is too little of at `length` to tell rows apart; a single run is one model, not a sample."""
        found = [self._entries(label, length) for label in self.values(length)]
        windows = self.windows(length)
        runs = min((len(entries) for entries in found if len(entries) > 1), default=ENOUGH_RUNS)
        if windows < ENOUGH_WINDOWS:
            return f"too few windows ({windows})"
        return f"too few runs ({runs})" if runs < ENOUGH_RUNS else None

    def windows(self, length: int) -> int:
        """Windows at `length`, of the row that has the fewest."""
        return min(len(entry["nll"]) for label in self.values(length) for entry in self._entries(label, length))

    def _entries(self, label: str, length: int) -> list[Mapping[str, Any]]:
        return [entry for run in self.rows[label] for entry in run["lengths"] if entry["length"] == length]

    def summary(self) -> list[str]:
        """Sentences with nothing in them but what the records hold."""
        first, last = self.lengths[0], self.lengths[-1]
        same: dict[tuple[str, str], list[int]] = {}  # what is said alike of several lengths is said once
        for length in self.lengths:
            if self.best(length):
                same.setdefault(self._verdict(length), []).append(length)
        found = [
            f"{who} at {self._ratios(lengths)}{how or self._uncertainty(lengths)}."
            for (who, how), lengths in same.items()
        ]
        for curve in self.curves:
            at = dict(zip(curve.lengths, curve.values, strict=True))
            shown = [length for length in dict.fromkeys((first, last)) if length in at] or [curve.lengths[-1]]
            values = " and ".join(f"{self.text(at[n])} at {self.ratio(n)}" for n in shown)
            found.append(f"{curve.label}: {values}{f', mean of {curve.runs} runs' if curve.runs > 1 else ''}.")
        return found

    def _verdict(self, length: int) -> tuple[str, str]:
        """Who is best at `length`, and how surely, as the two parts of a sentence; the second empty for retrieval."""
        best, values = self.best(length), self.values(length)
        if len(best) == len(values):
            return "All rows are equal", f": {self.text(values[best[0]])}"
        who = f"{'Lowest' if self.schema in LOSSES else 'Highest'} is {' and '.join(best)}"
        if self.schema not in LOSSES:
            return who, ""
        if few := self.too_few(length):
            return who, f", {few} to tell rows apart"
        level = self.level(length, best[0])
        if level is None:
            return who, "; windows or numbers of runs differ, which allows no paired comparison"
        level = [label for label in level if label not in best]
        said = f"not told apart from {', '.join(level)}" if level else "told apart from every other row"
        return who, f", {said} by paired 95 % intervals over {self.windows(length)} windows"

    def _uncertainty(self, lengths: Sequence[int]) -> str:
        """The interval of the best share; several are left to the table."""
        best = self.best(lengths[0])
        if len(lengths) > 1 or len(best) > 1:
            return "; the table has the 95 % intervals"
        value = self.values(lengths[0])[best[0]]
        return f" ({self.text(value)}, 95 % interval {self.bounds(value)})"

    def _ratios(self, lengths: Sequence[int]) -> str:
        *first, last = [self.ratio(length) for length in lengths]
        return f"{', '.join(first)} and {last}" if first else last

    def ratio(self, length: int) -> str:
        return ratio_text(length, self.original_length).replace("x", "×")

    def bounds(self, value: Interval) -> str:
        low, high = (self.text(Interval(bound, bound, bound)) for bound in (value.low, value.high))
        return f"{low.removesuffix(' %')} – {high}"

    def text(self, value: Interval) -> str:
        return number(value.value) if self.schema in LOSSES else f"{100 * value.value:.0f} %"


def grouped(sources: Iterable[Source]) -> list[Group]:
    """Sources that may stand in one table together, kinds in the order of `KINDS`."""
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(_key(source.record), []).append(source)
    groups = [_group(members) for members in found.values()]
    return sorted(groups, key=lambda group: list(KINDS).index(group.schema))


def told_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups, those of one title with the names of their files in it, with their folders where that is needed."""
    found = list(groups)
    for name in (lambda path: path.stem, str):
        titles = [group.title for group in found]
        found = [
            replace(group, suffix=", ".join(dict.fromkeys(name(source.path) for source in group.sources)))
            if titles.count(group.title) > 1
            else group
            for group in found
        ]
    return found


def _key(record: Record) -> str:
    """What must be equal: as in `curves`, and for same-targets the targets, which follow from the longest length."""
    same = record["settings"].get("protocol") == "same-targets"
    ends = record["rows"][0]["lengths"][0]["ends"] if same else None
    data = None if record.get("data") is None else data_identity(record["data"])
    return json.dumps([record["schema"], record["original_length"], data, record["settings"], ends], sort_keys=True)


def _group(sources: list[Source]) -> Group:
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for label, owners in _by_label(sources).items():
        if len(owners) == 1 or _are_runs(owners):
            rows.setdefault(label, []).extend(row for _, row in owners)
            continue
        for (_, row), name in zip(owners, _names([source for source, _ in owners]), strict=True):
            rows[_unused(f"{label} ({name})", rows)] = [row]
    renamed = [{**row, "label": label} for label, runs in rows.items() for row in runs]
    return Group(sources, rows, curves([{**sources[0].record, "rows": renamed}]))


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number = 1
    while (found := name if number == 1 else f"{name} #{number}") in taken:
        number += 1
    return found


def _by_label(sources: list[Source]) -> dict[str, list[tuple[Source, Mapping[str, Any]]]]:
    found: dict[str, list[tuple[Source, Mapping[str, Any]]]] = {}
    for source in sources:
        for row in source.record["rows"]:
            found.setdefault(str(row["label"]), []).append((source, row))
    return found


def _are_runs(owners: list[tuple[Source, Mapping[str, Any]]]) -> bool:
    """Whether rows of one label are one recipe under several training seeds, measured alike, or compared as runs."""
    if "cells" in owners[0][0].record and len({id(source) for source, _ in owners}) == 1:
        return True  # the names in `longwave compare` say so
    seeds = [source.record["model"].get("training_seed") for source, _ in owners]
    alike = {
        json.dumps([[row[key] for key in ROW[1:6]], [[e["length"], e.get("ends")] for e in row["lengths"]]])
        for _, row in owners
    }
    return None not in seeds and len(set(seeds)) == len(seeds) and len(alike) == 1 and all(r["own"] for _, r in owners)


def _names(sources: list[Source]) -> list[str]:
    """What tells the sources apart: their models' names, or else their files."""
    names = [Path(str(source.record["model"].get("path", ""))).name for source in sources]
    if all(names) and len(set(names)) == len(names):
        return names
    return [str(source.path) for source in sources]
