"""The hashes by which a record names its data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from longwave.data.kinds import Parsing
from longwave.data.paths import data_suffix
from longwave.data.sources import data_files
from longwave.files import sha256


def data_hashes(paths: Iterable[Path | str], parsing: Parsing | None = None) -> dict[str, str]:
    """SHA-256 of every data file, by its path, in the order in which the files are read."""
    return {str(file): sha256(file) for file in data_files(paths, parsing)}


def data_identity(hashes: dict[str, str]) -> list[list[str]]:
    """What makes data files the same text: contents, how they are read, and their order, but no names.

    Arguments:
        hashes: SHA-256 of each file by its path, in the order in which they are read.
    """
    return [[data_suffix(name) or "text", sha] for name, sha in hashes.items()]
