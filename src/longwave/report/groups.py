"""Records sorted into groups that may stand in one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longwave.evaluation.curves import Curve, conditions, curves
from longwave.evaluation.quantity import Entry, Quantity
from longwave.evaluation.records import ROW, quantities, quantity_of
from longwave.evaluation.statistics import Interval
from longwave.report.ratios import ratio_text
from longwave.report.sources import RecordFile

ALIKE = tuple(key for key in ROW if key not in ("label", "lengths"))  # in runs of one row


@dataclass(frozen=True, eq=False)
class Group:
    """Records of one kind, protocol, data and trained length.

    Arguments:
        sources: the records.
        rows: the runs of each row, by the name of the row in the report.
        curves: the values of the rows with intervals, in the order of `rows`.
        suffix: the end of its title.
    """

    sources: Sequence[RecordFile]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    curves: Sequence[Curve]
    suffix: str = ""

    @property
    def quantity(self) -> Quantity:
        return quantity_of(self.sources[0].record)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that all records of the group share."""
        found: Mapping[str, Any] = self.sources[0].record["settings"]
        return found

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
        parts = [self.quantity.title, self.settings.get("protocol") or self.settings.get("template")]
        names = [Path(path).name for path in self.sources[0].record.get("data") or ()]
        parts.append(", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""))
        return " · ".join(str(part) for part in (*parts, self.suffix) if part)

    def values(self, length: int) -> dict[str, Interval]:
        """The value of each row that was measured at `length`."""
        return {curve.label: found[length] for curve in self.curves if length in (found := curve.at())}

    def best(self, length: int) -> list[str]:
        """The rows with the best value at `length`: several if they are equal, none if there is only one row."""
        values = {label: value.value for label, value in self.values(length).items()}
        return self.quantity.best(values) if len(values) > 1 else []

    def entries(self, label: str, length: int) -> list[Entry]:
        """The entry of each run of a row at `length`."""
        return [entry for run in self.rows[label] for entry in run["lengths"] if entry["length"] == length]

    def ratio(self, length: int) -> str:
        """A length in units of the trained one."""
        return ratio_text(length, self.original_length).replace("x", "×")


def grouped(sources: Iterable[RecordFile]) -> list[Group]:
    """Groups of records that may stand in one table, in the order of EVALUATIONS."""
    found: dict[str, list[RecordFile]] = {}
    for source in sources:
        found.setdefault(json.dumps(conditions(source.record), sort_keys=True), []).append(source)
    groups = [_group(members) for members in found.values()]
    order = list(quantities())
    return sorted(groups, key=lambda group: order.index(group.sources[0].record["schema"]))


def told_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups under different titles: equal titles get the names of their files, or their paths if need be."""
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


def _group(sources: list[RecordFile]) -> Group:
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


def _by_label(sources: list[RecordFile]) -> dict[str, list[tuple[RecordFile, Mapping[str, Any]]]]:
    found: dict[str, list[tuple[RecordFile, Mapping[str, Any]]]] = {}
    for source in sources:
        for row in source.record["rows"]:
            found.setdefault(str(row["label"]), []).append((source, row))
    return found


def _are_runs(owners: list[tuple[RecordFile, Mapping[str, Any]]]) -> bool:
    """Whether rows of one label are runs: one recipe under several training seeds, or one name in a comparison."""
    if "cells" in owners[0][0].record and len({id(source) for source, _ in owners}) == 1:
        return True  # the names in `longwave compare` say so
    seeds = [source.record["model"].get("training_seed") for source, _ in owners]
    alike = {
        json.dumps([[row[key] for key in ALIKE], [[e["length"], e.get("ends")] for e in row["lengths"]]])
        for _, row in owners
    }
    return None not in seeds and len(set(seeds)) == len(seeds) and len(alike) == 1 and all(r["own"] for _, r in owners)


def _names(sources: list[RecordFile]) -> list[str]:
    """Names that tell the sources apart: the names of their models, or their paths."""
    names = [Path(str(source.record["model"].get("path", ""))).name for source in sources]
    if all(names) and len(set(names)) == len(names):
        return names
    return [str(source.path) for source in sources]
