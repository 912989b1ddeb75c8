"""Records as curves over lengths, or as grids over lengths and depths; and which records may share a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from longwave.data.hashes import data_identity
from longwave.evaluation.quantity import BY_DEPTH, Entry
from longwave.evaluation.records import TRAINED, Record, name_of, quantities, quantity_of
from longwave.evaluation.statistics import Interval
from longwave.evaluation.windows import scores_same_targets


@dataclass(frozen=True)
class Curve:
    """One row over all lengths, of one run or of several with the same label.

    Arguments:
        label: the row's name.
        lengths: in tokens, ascending.
        values: what was measured, with 95 % interval, for each length.
        runs: how many runs there are.
        trained: the longest real window that each run was trained on, in tokens; None: unknown.
    """

    label: str
    lengths: tuple[int, ...]
    values: tuple[Interval, ...]
    runs: int = 1
    trained: int | None = None

    @property
    def name(self) -> str:
        """The label, with the number of runs where there are several."""
        return self.label + (f" ({self.runs} runs)" if self.runs > 1 else "")

    def at(self) -> dict[int, Interval]:
        """The values by length."""
        return dict(zip(self.lengths, self.values, strict=True))


@dataclass(frozen=True)
class Grid:
    """One row over lengths and depths, of one run or of several with the same label.

    Arguments:
        label: the row's name.
        lengths: in tokens, ascending.
        depths: in the prompt, ascending from 0 (start) to 1 (end).
        rates: share of successes, rates[depth][length].
        runs: how many runs there are.
        trained: the longest real window that each run was trained on, in tokens; None: unknown.
    """

    label: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    rates: tuple[tuple[float, ...], ...]
    runs: int = 1
    trained: int | None = None

    @property
    def name(self) -> str:
        """The label, with the number of runs where there are several."""
        return self.label + (f" ({self.runs} runs)" if self.runs > 1 else "")


def conditions(record: Record) -> dict[str, Any]:
    """What was measured on what: the part of a record that must be equal in records that share a table, by name.

    Data files are compared by their contents and their order: folders move, and windows are cut from the texts in
    that order. Under the protocol same-targets the targets must be equal, too: they follow from the longest length.
    """
    data, settings = record.get("data"), record["settings"]
    same = scores_same_targets(settings or {})
    return {
        "schema": record["schema"],
        "original length": record["original_length"],
        "data": None if data is None else data_identity(data),
        "settings": settings,
        "targets": record["rows"][0]["lengths"][0].get("ends") if same else None,
    }


def check_together(records: Sequence[Record], *, mixed: bool = False) -> None:
    """Refuse records that cannot share a table.

    Arguments:
        mixed: accept records of different protocols, data and trained lengths; they must have one schema all the same.

    Raises:
        ValueError: if there are none, or they differ in what must be equal.
    """
    if not records:
        raise ValueError("no records to show.")
    first = conditions(records[0])
    for other in (conditions(each) for each in records[1:]):
        for key in ("schema",) if mixed else first:
            if other[key] != first[key]:
                which = f"settings ({_differing(first[key], other[key])})" if key == "settings" else key
                hint = "Evaluate all alike, or draw them together all the same with --force (in Python: mixed=True)."
                hint = "Draw them apart." if key == "schema" else hint
                raise ValueError(f"the records differ in their {which} and cannot be compared. {hint}")


def curves(records: Iterable[Record], *, mixed: bool = False) -> list[Curve]:
    """The rows of one or more records that may share a table, rows with equal labels taken as runs of the same thing.

    The interval of a single run is that of its record. The interval of several runs comes from a bootstrap over
    windows and runs for losses, and from the trials of all runs for shares. A loss of one window has no interval: low
    and high are its value.

    Arguments:
        mixed: see `check_together`.

    Raises:
        ValueError: as `check_together`, or if runs of a label have different lengths.
    """
    records = list(records)
    check_together(records, mixed=mixed)
    quantity, trained, found = quantity_of(records[0]), trained_lengths(records), []
    for label, runs in _runs(records).items():
        values = tuple(quantity.combine(entries) for entries in zip(*runs, strict=True))
        found.append(Curve(label, _lengths(runs[0]), values, len(runs), trained[label]))
    return found


def grids(records: Iterable[Record], *, mixed: bool = False) -> list[Grid]:
    """The rows of records with depths by length and depth, otherwise as `curves`.

    Raises:
        ValueError: also for records that have no depths.
    """
    records = list(records)
    check_together(records, mixed=mixed)
    _check_depths(records[0])
    found, trained = [], trained_lengths(records)
    for label, runs in _runs(records).items():
        hits: dict[tuple[float, int], list[bool]] = {}
        for entry in (entry for run in runs for entry in run):
            for depth, correct in zip(entry["depths"], entry["correct"], strict=True):
                hits.setdefault((depth, entry["length"]), []).append(correct)
        lengths, depths = _lengths(runs[0]), tuple(sorted({depth for depth, _ in hits}))
        rates = tuple(tuple(mean(hits[depth, length]) for length in lengths) for depth in depths)
        found.append(Grid(label, lengths, depths, rates, len(runs), trained[label]))
    return found


def trained_lengths(records: Sequence[Record]) -> dict[str, int | None]:
    """Label -> the longest real window that each of its runs was trained on; None where one does not tell."""
    found: dict[str, list[int | None]] = {}
    for row in (row for each in records for row in each["rows"]):
        found.setdefault(row["label"], []).append(row.get(TRAINED))
    known = {label: [length for length in lengths if length is not None] for label, lengths in found.items()}
    return {label: min(known[label]) if len(known[label]) == len(lengths) else None for label, lengths in found.items()}


def _check_depths(record: Record) -> None:
    def deep(schema: str) -> bool:
        return quantity_of({"schema": schema}).parts is BY_DEPTH

    if not deep(record["schema"]):
        known = [schema for schema, each in quantities().items() if each.by_length and deep(schema)]
        names = " or ".join(name_of({"schema": schema}) for schema in known)
        raise ValueError(f"records of {record['schema']} have no depths. Give those of {names}.")


def _runs(records: Sequence[Record]) -> dict[str, list[list[Entry]]]:
    """Label -> the entries, by length, of each run of it."""
    grouped: dict[str, list[list[Entry]]] = {}
    for row in (row for each in records for row in each["rows"]):
        grouped.setdefault(row["label"], []).append(sorted(row["lengths"], key=lambda entry: entry["length"]))
    for label, runs in grouped.items():
        if any(_lengths(run) != _lengths(runs[0]) for run in runs):
            raise ValueError(f"the runs of {label} were measured at different lengths. Evaluate all alike.")
    return grouped


def _lengths(run: Sequence[Entry]) -> tuple[int, ...]:
    return tuple(entry["length"] for entry in run)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return ", ".join(f"{name} {a.get(name)} and {b.get(name)}" for name in names)
