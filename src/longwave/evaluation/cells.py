"""Cells of a comparison: one model under one method in one evaluation, computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from longwave import files as io
from longwave import provenance
from longwave.checkpoints.folder import ModelFolder, resolve
from longwave.evaluation.results import Record, read, write
from longwave.layout import EXPORT_RECORD, METRICS, TRAINING

FOLDER = "cells"
PLACES = ("*", "model/*")  # of the files that make a model; checkpoints of its training lie deeper
# These say how a model came about, or what was found of it, not what it is.
RECORDS = (TRAINING, METRICS, "trainer_state.json", EXPORT_RECORD, "*.md", "*.png", "*.log")
VERSIONS = ("longwave", "torch", "transformers")


@dataclass(frozen=True)
class Cell:
    """One model under one method in one evaluation.

    Arguments:
        label: name of the row. It is no part of the key: a renamed row is not measured again.
        model: folder, or name on a hub.
        method: `METHOD[@SCHEDULE]`.
        step: name of the step of the suite, and of its record.
        depends: everything that the numbers of the cell depend on, as JSON.
    """

    label: str
    model: str
    method: str
    step: str
    depends: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The name of the cell in messages: step and row."""
        return f"{self.step}, {self.label}"

    @property
    def key(self) -> str:
        """The first 20 hex digits of the SHA-256 of `depends`."""
        text = json.dumps(self.depends, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(model: str | ModelFolder) -> dict[str, str]:
    """SHA-256 of every file that makes a model folder what it is; for a name on a hub, its commit.

    Raises:
        ValueError: if there is no such model.
    """
    found = resolve(model)
    if found.where:
        return {found.name: str(found.commit)}
    folder = found.path
    files = sorted(file for pattern in PLACES for file in folder.glob(pattern) if file.is_file())
    own = [file for file in files if not any(file.match(name) for name in (*RECORDS, ".*"))]
    return {str(file.relative_to(folder)): io.sha256(file) for file in own}


def versions() -> dict[str, str]:
    """Versions of the libraries that a cell depends on: another version measures the cell again."""
    return {name: version for name, version in provenance.versions().items() if name in VERSIONS}


class Store:
    """Finished cells in a folder, one JSON file each, written whole or not at all.

    Several processes may share the folder. A process claims a cell by a lock. The system releases the lock when the
    process ends, also when it is killed.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / FOLDER

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

    def has(self, cell: Cell) -> bool:
        return self.path(cell).is_file()

    def read(self, cell: Cell) -> Record:
        """The record of a finished cell; a damaged file is a `ValueError` that names it and the cell."""
        try:
            return read(self.path(cell), cell.depends["evaluation"]["schema"])
        except ValueError as error:
            raise ValueError(
                f"{error}\nIt is the cell of {cell.label} in {cell.step}. Delete the file: the same command then "
                "measures that cell again, and keeps the others."
            ) from None

    def write(self, cell: Cell, record: Record) -> None:
        write(self.path(cell), record, overwrite=True)

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Claim a cell for the length of a `with` block; gives False if another process has it."""
        io.make_folder(self.folder)
        lock = filelock.FileLock(self.folder / f"{cell.key}.lock", blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
            if self.has(cell):  # who locks the unlinked file, or a new one, will find the cell finished
                Path(lock.lock_file).unlink(missing_ok=True)
