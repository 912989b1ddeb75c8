"""metrics.jsonl: one row per optimizer step, also if the process was killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longwave.files import write_text
from longwave.outside import Outside

ANEW = "Restore the file, or start the run again with --overwrite."  # what to do where a run goes on


def read_metrics(path: Path | str, remedy: str = "Leave it out, or train again.") -> list[dict[str, Any]]:
    """Complete rows, in order; the half-written last line of a killed process is left out.

    Arguments:
        remedy: what to do about a damaged file.

    Raises:
        ValueError: for a line that is no JSON.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). {remedy}") from None


class MetricsLog:
    """Appends rows to a file, each flushed before the next step (and so before any later checkpoint).

    Arguments:
        path: the file.
        step: the step of the checkpoint that training resumes from. Later rows are dropped; 0 drops all rows.

    Raises:
        ValueError: for a damaged row in the file.
    """

    def __init__(self, path: Path | str, step: int = 0) -> None:
        self.path = Path(path)
        rows, outside = read_metrics(self.path, ANEW), Outside(self.path, ANEW)
        for row in rows:
            outside.numbers(row, ("step",))
        kept = [row for row in rows if row["step"] <= step]
        write_text(self.path, "".join(_line(row) for row in kept))

    def append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def summary(path: Path) -> dict[str, Any]:
    """What a run came to, for its record."""
    rows = read_metrics(path)
    return {
        "steps": rows[-1]["step"],
        "tokens": rows[-1]["tokens"],
        "first_loss": rows[0]["loss"],
        "last_loss": sum(row["loss"] for row in rows[-10:]) / len(rows[-10:]),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
