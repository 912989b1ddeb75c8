"""Records of measurements: one JSON that says what was measured, on what, by which command.

The fields are documented in docs/results-schema.md. Values of every window or trial are kept, so that two
records can be compared in pairs long after the models are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longwave import files as io
from longwave import provenance
from longwave.evaluation.kinds import Scores
from longwave.evaluation.quantity import Quantity
from longwave.outside import Outside

TASKS = "longwave.tasks/1"
COMMON = ("schema", "model", "original_length", "rows", "versions", "command")
ROW = ("label", "method", "schedule", "max_factor", "log_n", "own", "lengths")
SCORE = ("task", "metric", "value", "samples")
TRAINED = "trained_length"  # in a row, null where it is unknown; records of older versions lack it
OURS = re.compile(r'"schema"\s*:\s*"longwave\.')
Record = dict[str, Any]


def quantities() -> dict[str, Quantity | Scores]:
    """The quantity of each schema: those of the evaluations in EVALUATIONS, and that of tasks."""
    from longwave.evaluation.registry import EVALUATIONS  # here: an evaluation may write records

    return {each.schema: each.quantity for each in EVALUATIONS.values()} | {TASKS: Scores("Tasks")}


def quantity_of(record: Mapping[str, Any]) -> Quantity:
    """The quantity of a record by length; a `ValueError` for one without lengths, or of an unknown schema."""
    found = quantities().get(record["schema"])
    if isinstance(found, Quantity):
        return found
    why = "is unknown" if found is None else "has no lengths"
    known = ", ".join(schema for schema, each in quantities().items() if each.by_length)
    raise ValueError(f"the schema {record['schema']!r} {why}. Give a record of {known}.")


def name_of(record: Mapping[str, Any]) -> str:
    """The name of a record's evaluation and file: `perplexity` for longwave.perplexity/1."""
    return str(record["schema"]).removeprefix("longwave.").partition("/")[0]


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
        schema: the schema of the evaluation, `longwave.NAME/VERSION`.
        model: its `path`, and more to know it by.
        settings: protocol and its numbers.
        rows: a row for each method, with `Subject.to_json()` and `lengths`; or a row for each task and metric.
        data: SHA-256 of each data file.
        seed: the seed of the random draws; None if nothing is drawn.
    """
    return {
        "schema": schema,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": provenance.command(),
        "versions": provenance.versions(),
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


def is_ours(path: Path) -> bool:
    """Whether a JSON file says that it is a record. It may be damaged."""
    return OURS.search(path.read_text("utf-8", errors="replace")) is not None


def read(path: Path | str, schema: str | None = None) -> Record:
    """Read a record, and check every field that tables, plots and the report need.

    Arguments:
        schema: the schema that is accepted; None for every known one.

    Raises:
        ValueError: if the file is no record, is of another schema, or is damaged. The message names the field.
    """
    return from_json(io.read_json(path), path, schema)


def from_json(value: Any, path: Path | str, schema: str | None = None) -> Record:
    """`read` for JSON that was read before; `path` is named in errors."""
    known = quantities()
    found = value.get("schema") if isinstance(value, dict) else None
    allowed = list(known) if schema is None else [schema]
    if isinstance(found, str) and found not in allowed:
        raise ValueError(f"{path} has schema {found!r}, expected {' or '.join(allowed)}. Leave it out.")
    if not isinstance(found, str) or any(key not in value for key in COMMON):
        raise ValueError(f"{path} is not a record of longwave: it lacks some of {', '.join(COMMON)}.")
    outside = Outside(path)
    outside.require(value, ("created", "settings"), "the record")
    for key in ("model", "versions", "settings"):
        if not isinstance(value[key], dict):
            raise outside.damaged(f"its {key} must be an object")
    outside.objects(value, ("data",))
    outside.counts(value, ("original_length",))
    quantity = known[found]
    for row in outside.filled(value["rows"], "rows"):
        if isinstance(quantity, Quantity):
            outside.require(row, ROW, "a row")
            outside.texts(row, ("label",))
            outside.counts(row, [TRAINED] * (row.get(TRAINED) is not None))
            for entry in outside.filled(row["lengths"], "lengths"):
                quantity.check(entry, outside)
        else:
            outside.require(row, SCORE, "a row")
            outside.numbers(row, [name for name in ("value", "stderr") if row.get(name) is not None])
    return {**value, "settings": {**_before(found), **value["settings"]}}


def _before(schema: str) -> Mapping[str, Any]:
    """The settings that older records of a schema lack."""
    from longwave.evaluation.registry import EVALUATIONS  # here: an evaluation may write records

    return next((each.before for each in EVALUATIONS.values() if each.schema == schema), {})
