"""Paths of data files, before one is opened: do they exist, and how would they be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STRUCTURED = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # data that is parsed
HUB = "hub:"
PACKED = (".gz", ".bz2", ".xz", ".zst")


def check_data(paths: Iterable[Path | str]) -> list[Path]:
    """The paths; a `ValueError` for one that does not exist."""
    found = [Path(path) for path in paths]
    for path in found:
        if is_hub(path) or path.exists():
            continue
        plain, share = split_share(path)
        if share and Path(plain).exists():
            raise ValueError(f"data {path} has a share, and only training mixes data by shares. Pass {plain}.")
        raise ValueError(f"data {path} does not exist. Pass text, jsonl or parquet files, or a folder of them.")
    return found


def split_share(given: Path | str) -> tuple[str, str]:
    """A path and the share behind it, `0.3` of books@0.3; empty where there is none. A path that exists has none."""
    path, at, share = str(given).rpartition("@")
    if not at or "/" in share or not path or Path(str(given)).exists():
        return str(given), ""
    return path, share


def is_hub(path: Path | str) -> bool:
    """Whether a path stands for a data set of the Hugging Face hub: `hub:NAME[:CONFIG][:SPLIT]`."""
    return str(path).startswith(HUB)


def data_suffix(name: Path | str) -> str:
    """The suffix that says how a data file is read, `.jsonl` of A.JSONL.gz; empty for text."""
    path = Path(str(name).lower())
    if path.suffix in PACKED:
        path = path.with_suffix("")
    return path.suffix if path.suffix in STRUCTURED else ""
