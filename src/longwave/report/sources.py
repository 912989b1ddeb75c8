"""What a report is made from: records and training runs, checked once as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longwave.evaluation.cells import FOLDER as CELLS
from longwave.evaluation.records import Record, is_ours, quantities, read
from longwave.layout import EVALUATED, METRICS
from longwave.outside import Outside
from longwave.provenance import training_of
from longwave.training.metrics import read_metrics

NUMBERS = ("grad_norm", "field_grad_norm", "lr", "field_lr", "tokens")


@dataclass(frozen=True, eq=False)
class RecordFile:
    """A record and the file it was read from."""

    path: Path
    record: Record

    @property
    def by_length(self) -> bool:
        """Whether its rows have lengths; those of tasks have none."""
        return quantities()[self.record["schema"]].by_length

    @property
    def title(self) -> str:
        """What its numbers are called."""
        return quantities()[self.record["schema"]].title


@dataclass(frozen=True, eq=False)
class Training:
    """A training run.

    Arguments:
        path: its metrics.jsonl.
        rows: that file's rows, at least one, each with `step` and `loss`.
        record: its training.json, None where there is none.
        evaluated: the rows of its eval.jsonl, each with `step` and `lengths`; none where there is none.
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any] | None = None
    evaluated: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def factors(self) -> list[float]:
        """The t of all micro-batches that the rows tell of."""
        return [float(t) for row in self.rows for t in row.get("factors") or ()]


def read_source(path: Path) -> RecordFile:
    """Read a record, checked as in `longwave.evaluation.records.read`."""
    return RecordFile(path, read(path))


def read_by_length(path: Path, name: str = "") -> Record:
    """Read a record by length, or the only record in a folder, and put `name` on its rows."""
    found = read_source(_only(path))
    if not found.by_length:
        raise ValueError(f"{found.path} has no lengths to plot. `longwave report` shows records of tasks.")
    rows = found.record["rows"]
    if name:
        for row in rows:
            row["label"] = name if len(rows) == 1 else f"{name}: {row['label']}"
    return found.record


def _only(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"record {path} does not exist. Give a file such as perplexity.json, or its folder.")
    if path.is_file():
        return path
    inside = [file for file in sorted(path.glob("*.json")) if is_ours(file)]
    if len(inside) != 1:
        what = f"{', '.join(file.name for file in inside)}: name one" if inside else "no record"
        raise ValueError(f"folder {path} holds {what}.")
    return inside[0]


def check_metrics(rows: list[Any], path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a `ValueError` if there is none, or one without a step and a finite loss."""
    if not rows:
        raise ValueError(f"{path} holds no complete row: the run had not finished a step. Leave it out.")
    outside = Outside(path, "Leave it out, or train again.")
    for row in rows:
        outside.numbers(row, ("step", "loss"))
        outside.numbers(row, [name for name in NUMBERS if row.get(name) is not None])
        if row.get("factors"):
            outside.series(row["factors"], "factors")
    return rows


def read_training(path: Path) -> Training:
    """Read a metrics.jsonl, and training.json and eval.jsonl beside it where they are; a damaged one is an error."""
    rows = check_metrics(read_metrics(path), path)
    return Training(path, rows, training_of(path.parent), check_evaluated(path.with_name(EVALUATED)))


def check_evaluated(path: Path) -> list[dict[str, Any]]:
    """The rows of an eval.jsonl, none where there is none; a `ValueError` for one without finite perplexities."""
    outside, rows = Outside(path, "Leave the run out, or train again."), read_metrics(path)
    for row in rows:
        outside.numbers(row, ("step",))
        for entry in outside.filled(row.get("lengths"), "lengths"):
            outside.numbers(entry, ("length", "ppl"))
    return rows


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The records and metrics.jsonl at the paths or below them, each once.

    Paths below the current folder become relative to it: a page names its files, and goes to other people.

    Raises:
        ValueError: for a path that does not exist, a file of another kind, and a folder that holds none.
    """
    here = Path.cwd()
    files = dict.fromkeys(file.resolve() for path in paths for file in _files(path))
    return [file.relative_to(here) if file.is_relative_to(here) else file for file in files]


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or the records and metrics in a folder, without the cells of a comparison."""
    if not path.exists():
        raise ValueError(f"{path} does not exist. Give records, metrics.jsonl, or folders that hold some.")
    if path.is_file():
        if path.suffix != ".json" and path.name != METRICS:
            raise ValueError(f"{path} is neither a record (.json) nor metrics.jsonl. Leave it out.")
        yield path
        return
    inside = [f for f in sorted(path.rglob("*.json*")) if f.is_file() and not _hidden(f.relative_to(path).parts)]
    found = [f for f in inside if f.name == METRICS or (f.suffix == ".json" and is_ours(f))]
    if not found:
        raise ValueError(f"folder {path} holds no record and no metrics.jsonl. Run `longwave perplexity` first.")
    yield from found


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == CELLS for part in parts)
