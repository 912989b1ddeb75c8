"""Paths of data files, before one is opened: do they exist, and how would they be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STRUCTURED = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # data that is parsed
PACKED = (".gz", ".bz2", ".xz", ".zst")


def check_data(paths: Iterable[Path | str]) -> list[Path]:
    """The paths; a `ValueError` for one that does not exist."""
    found = [Path(path) for path in paths]
    for path in found:
        if not path.exists():
            raise ValueError(f"data {path} does not exist. Pass text, jsonl or parquet files, or a folder of them.")
    return found


def data_suffix(name: Path | str) -> str:
    """The suffix that says how a data file is read, `.jsonl` of A.JSONL.gz; empty for text."""
    path = Path(str(name).lower())
    if path.suffix in PACKED:
        path = path.with_suffix("")
    return path.suffix if path.suffix in STRUCTURED else ""
