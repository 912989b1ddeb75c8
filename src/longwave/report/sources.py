"""What a report is made from: records and training runs, checked once as they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave import files as io
from longwave.evaluation.results import LONGPPL, LOSSES, NEEDLE, PASSKEY, PERPLEXITY, TASKS, Record, read

KINDS = {
    PERPLEXITY: "Perplexity", LONGPPL: "LongPPL", PASSKEY: "Passkey retrieval", NEEDLE: "Needle retrieval",
    TASKS: "Tasks",
}  # fmt: skip
VALUE = {PERPLEXITY: "ppl", LONGPPL: "longppl", PASSKEY: "rate", NEEDLE: "rate"}
METRICS = ("grad_norm", "field_grad_norm", "lr", "field_lr", "tokens")
OURS = re.compile(r'"schema"\s*:\s*"longwave\.')
SCORE = ("task", "metric", "value", "samples")
ROW = ("label", "method", "schedule", "max_factor", "log_n", "own", "lengths")
LOSS_ENTRY = ("length", "factor", "windows", "ppl", "interval", "ends", "nll", "tokens")
RETRIEVAL_ENTRY = ("length", "factor", "trials", "rate", "interval", "by_depth", "correct")


@dataclass(frozen=True, eq=False)
class Source:
    """A record and the file it was read from."""

    path: Path
    record: Record


@dataclass(frozen=True, eq=False)
class Training:
    """A training run.

    Arguments:
        path: its metrics.jsonl.
        rows: that file's rows, at least one, each with `step` and `loss`.
        record: its training.json, None where there is none.
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any] | None = None


def is_ours(path: Path) -> bool:
    """Whether a JSON file says that it is a record, also where it is damaged further on."""
    return OURS.search(path.read_text("utf-8", errors="replace")) is not None


def read_source(path: Path) -> Source:
    """Read a record with every field that the report needs.

    Raises:
        ValueError: if it is damaged, of an unknown schema, or lacks a field, naming the file and the field.
    """
    value = io.read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(schema, str) or schema not in KINDS:
        raise ValueError(f"{path} has schema {schema!r}; a report shows {', '.join(KINDS)}. Leave it out.")
    record = read(path, schema)
    _require(record, ("created", "settings"), path, "the record")
    for key in ("model", "versions", "settings"):
        if not isinstance(record[key], dict):
            raise ValueError(f"{path} is damaged: its {key} must be an object. Measure it again.")
    _numbers(record, ("original_length",), path)
    for row in _list(record["rows"], path, "rows"):
        if schema == TASKS:
            _require(row, SCORE, path, "a row")
            _numbers(row, [name for name in ("value", "stderr") if row.get(name) is not None], path)
            continue
        _require(row, ROW, path, "a row")
        for entry in _list(row["lengths"], path, "lengths"):
            _check_entry(entry, schema, path)
    return Source(path, record)


def _check_entry(entry: Any, schema: str, path: Path) -> None:
    loss = schema in LOSSES
    _require(entry, (*(LOSS_ENTRY if loss else RETRIEVAL_ENTRY), VALUE[schema]), path, "an entry of lengths")
    _numbers(entry, ("length", VALUE[schema]), path)
    if entry["interval"] is not None:
        _numbers(dict(enumerate(_list(entry["interval"], path, "interval"))), (0, 1), path)
    name, keys = ("by_position", ("start", "end", "nll")) if loss else ("by_depth", ("depth", "rate"))
    for part in entry.get(name) or ():
        _numbers(part, keys, path)


def _numbers(value: Any, keys: Sequence[Any], path: Path) -> None:
    """Finite numbers under all of `keys`: JSON of other writers may say NaN, or "6"."""
    for key in keys:
        found = value.get(key) if isinstance(value, dict) else None
        if not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(f"{path} is damaged: {key} is {found!r} where a number must be. Measure it again.")


def _list(value: Any, path: Path, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} is damaged: its {name} must be a list that is not empty. Measure it again.")
    return value


def _require(value: Any, keys: Sequence[str], path: Path, what: str) -> None:
    lacking = [key for key in keys if not isinstance(value, dict) or key not in value]
    if lacking:
        raise ValueError(f"{path} is damaged: {what} lacks {', '.join(lacking)}. Measure it again.")


def check_metrics(rows: list[Any], path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a `ValueError` if there is none, or one without a step and a finite loss."""
    if not rows:
        raise ValueError(f"{path} holds no complete row: the run had not finished a step. Leave it out.")
    for row in rows:
        _numbers(row, ("step", "loss"), path)
        _numbers(row, [name for name in METRICS if row.get(name) is not None], path)
    return rows
