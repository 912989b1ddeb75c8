"""What a report is made from: records and training runs, checked once as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave.evaluation.outside import Outside
from longwave.evaluation.records import Record, quantities, read

METRICS = ("grad_norm", "field_grad_norm", "lr", "field_lr", "tokens")


@dataclass(frozen=True, eq=False)
class Source:
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
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any] | None = None


def read_source(path: Path) -> Source:
    """Read a record, checked as in `longwave.evaluation.records.read`."""
    return Source(path, read(path))


def check_metrics(rows: list[Any], path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a `ValueError` if there is none, or one without a step and a finite loss."""
    if not rows:
        raise ValueError(f"{path} holds no complete row: the run had not finished a step. Leave it out.")
    outside = Outside(path, "Leave it out, or train again.")
    for row in rows:
        outside.numbers(row, ("step", "loss"))
        outside.numbers(row, [name for name in METRICS if row.get(name) is not None])
    return rows
