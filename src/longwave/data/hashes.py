"""The hashes by which a record names its data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from longwave.data.sources import data_files
from longwave.files import sha256


def data_hashes(paths: Iterable[Path | str]) -> dict[str, str]:
    """SHA-256 of every data file, by its path, in the order in which the files are read."""
    return {str(file): sha256(file) for file in data_files(paths)}
