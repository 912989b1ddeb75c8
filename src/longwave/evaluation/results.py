"""Records of measurements: one JSON that says what was measured, on what, by which command.

The fields are documented in docs/results-schema.md. Values of every window or trial are kept, so that two
records can be compared in pairs long after the models are gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from longwave import files as io
from longwave.evaluation.statistics import Interval, paired_bootstrap, wilson

PERPLEXITY, LONGPPL = "longwave.perplexity/1", "longwave.longppl/1"
PASSKEY, NEEDLE = "longwave.passkey/1", "longwave.needle/1"
LOSSES = (PERPLEXITY, LONGPPL)  # lower is better, with the loss of every window
KNOWN = (*LOSSES, PASSKEY, NEEDLE)  # by length
TASKS = "longwave.tasks/1"
COMMON = ("schema", "model", "original_length", "rows", "versions", "command")
Record = dict[str, Any]


def record(
    schema: str,
    *,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    original_length: int,
    rows: Sequence[Mapping[str, Any]],
    data: Mapping[str, str] | None = None,
    seed: int | None = None,
) -> Record:
    """A complete record of one evaluation.

    Arguments:
        schema: `PERPLEXITY`, `LONGPPL`, `PASSKEY`, `NEEDLE` or `TASKS`.
        model: `path`, and what else identifies it.
        settings: protocol and its numbers.
        rows: a row for each method, `Subject.to_json()` and `lengths`; or for each task and metric.
        data: SHA-256 of each data file.
        seed: of random draws, None where nothing is drawn.
    """
    return {
        "schema": schema,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": io.command(),
        "versions": io.versions(),
        "model": dict(model),
        "data": None if data is None else dict(data),
        "seed": seed,
        "settings": dict(settings),
        "original_length": original_length,
        "rows": [dict(row) for row in rows],
    }


def write(path: Path | str, value: Record, *, overwrite: bool = False) -> Path:
    """Write a record, whole or not at all; an existing file is a `ValueError` unless `overwrite`."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists. Choose another name or pass --overwrite.")
    io.write_json(path, value)
    return path


def read(path: Path | str, schema: str | None = None) -> Record:
    """Read a record; a `ValueError` for a file that is none, or not of `schema` (None: any by length)."""
    value = io.read_json(path)
    if not isinstance(value, dict) or any(key not in value for key in COMMON):
        raise ValueError(f"{path} is not a record of longwave: it lacks some of {', '.join(COMMON)}.")
    known = KNOWN if schema is None else (schema,)
    if value["schema"] not in known:
        raise ValueError(f"{path} has schema {value['schema']!r}, expected {' or '.join(known)}.")
    return value


@dataclass(frozen=True)
class Curve:
    """One row over all lengths, of one run or of several with the same label.

    Arguments:
        label: the row's name.
        lengths: in tokens, ascending.
        values: perplexity, LongPPL, or share of keys or needles retrieved, with 95 % interval, for each length.
        runs: how many runs there are.
    """

    label: str
    lengths: tuple[int, ...]
    values: tuple[Interval, ...]
    runs: int = 1


def curves(records: Iterable[Record], *, mixed: bool = False) -> list[Curve]:
    """The rows of one or more records of one kind, rows with equal labels taken as runs of the same thing.

    A single run's interval is the one in the record, from its windows or trials. That of several runs comes
    from a bootstrap over windows and runs (perplexity, LongPPL), or is of the trials of all runs (passkey, needle).
    A loss of one window has none: low and high are its value.

    Arguments:
        mixed: take records of different protocols and data together all the same.

    Raises:
        ValueError: if the records differ in kind, protocol, trained length or data, for then a plot of them all
            would compare what is not comparable; or if runs of a label have different lengths.
    """
    records = list(records)
    grouped = _runs(records, mixed)
    combine = _loss if records[0]["schema"] in LOSSES else _retrieval
    return [
        Curve(label, _lengths(runs), tuple(combine(list(entries)) for entries in zip(*runs, strict=True)), len(runs))
        for label, runs in grouped.items()
    ]


@dataclass(frozen=True)
class Grid:
    """One row over lengths and depths, of one run or of several with the same label.

    Arguments:
        label: the row's name.
        lengths: in tokens, ascending.
        depths: of the needle, ascending from 0 (start) to 1 (end).
        rates: share retrieved, rates[depth][length].
        runs: how many runs there are.
    """

    label: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    rates: tuple[tuple[float, ...], ...]
    runs: int = 1


def grids(records: Iterable[Record], *, mixed: bool = False) -> list[Grid]:
    """The rows of needle (or passkey) records by length and depth, otherwise as `curves`.

    Raises:
        ValueError: also for records that have no depths.
    """
    records = list(records)
    grouped = _runs(records, mixed)
    if records[0]["schema"] in LOSSES:
        raise ValueError(
            f"records of {records[0]['schema']} have no depths. Give those of `longwave needle` or `passkey`."
        )
    found = []
    for label, runs in grouped.items():
        hits: dict[tuple[float, int], list[bool]] = {}
        for entry in (entry for run in runs for entry in run):
            for depth, correct in zip(entry["depths"], entry["correct"], strict=True):
                hits.setdefault((depth, entry["length"]), []).append(correct)
        lengths, depths = _lengths(runs), tuple(sorted({depth for depth, _ in hits}))
        rates = tuple(tuple(mean(hits[depth, length]) for length in lengths) for depth in depths)
        found.append(Grid(label, lengths, depths, rates, len(runs)))
    return found


def _runs(records: list[Record], mixed: bool) -> dict[str, list[list[dict[str, Any]]]]:
    """Label -> the entries, by length, of each run of it; refused where records cannot be shown together."""
    if not records:
        raise ValueError("no records to show.")
    for key in ("schema",) if mixed else ("schema", "original_length", "data", "settings"):
        for other in records[1:]:
            if _identity(other, key) != _identity(records[0], key):
                which = f"settings ({_differing(records[0], other)})" if key == "settings" else key.replace("_", " ")
                hint = (
                    "Draw them apart."
                    if key == "schema"
                    else (
                        "Evaluate all alike, or draw them together all the same with --force (in Python: mixed=True)."
                    )
                )
                raise ValueError(f"the records differ in their {which} and cannot be compared. {hint}")
    grouped: dict[str, list[list[dict[str, Any]]]] = {}
    for row in (row for each in records for row in each["rows"]):
        grouped.setdefault(row["label"], []).append(sorted(row["lengths"], key=lambda entry: entry["length"]))
    for label, runs in grouped.items():
        if any(_lengths([run]) != _lengths(runs) for run in runs):
            raise ValueError(f"the runs of {label} were measured at different lengths. Evaluate all alike.")
    return grouped


def _lengths(runs: list[list[dict[str, Any]]]) -> tuple[int, ...]:
    return tuple(entry["length"] for entry in runs[0])


def value_of(entry: Mapping[str, Any]) -> float:
    """What was measured at one length."""
    return float(next(entry[name] for name in ("rate", "longppl", "ppl") if name in entry))


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], **options: Any) -> Interval:
    """Paired bootstrap of two rows at one length: each a list of runs' entries of `lengths`.

    Takes the options of `paired_bootstrap`. A ratio below 1 favours a.

    Raises:
        ValueError: if the windows are not the same ones.
    """
    _check_windows([*a, *b])
    return paired_bootstrap([entry["nll"] for entry in a], [entry["nll"] for entry in b], a[0]["tokens"], **options)


def _check_windows(entries: Sequence[Mapping[str, Any]]) -> None:
    if any(entry[key] != entries[0][key] for entry in entries for key in ("ends", "tokens")):
        raise ValueError("the rows were measured on different windows. Evaluate both with one protocol and data.")


def _loss(runs: list[dict[str, Any]]) -> Interval:
    if len(runs) == 1:
        value, interval = value_of(runs[0]), runs[0]["interval"]
        return Interval(value, *(interval or (value, value)))
    if len(runs[0]["nll"]) == 1:  # no interval, as for one run of one window
        _check_windows(runs)
        value = math.exp(mean(run["nll"][0] / run["tokens"][0] for run in runs))
        return Interval(value, value, value)
    certain = {**runs[0], "nll": [0.0] * len(runs[0]["nll"])}  # perplexity 1 everywhere: the ratio is the value
    return compare(runs, [certain])


def _retrieval(runs: list[dict[str, Any]]) -> Interval:
    hits = [hit for run in runs for hit in run["correct"]]
    return wilson(sum(hits), len(hits))


def _differing(a: Record, b: Record) -> str:
    names = [name for name in {**a["settings"], **b["settings"]} if a["settings"].get(name) != b["settings"].get(name)]
    return ", ".join(f"{name} {a['settings'].get(name)} and {b['settings'].get(name)}" for name in names)


def _identity(value: Record, key: str) -> Any:
    # Folders move; contents identify data, in the order in which they were read: windows are cut from it.
    return io.data_identity(value[key]) if key == "data" and value[key] is not None else value[key]
