"""Token ids of many documents in one file, which every process maps into its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
from filelock import FileLock

POLL = 0.2  # seconds between looks at a lock that another process holds
STARTS = ".starts.npy"

Flat = tuple[np.ndarray, np.ndarray]  # ids int32 [tokens], starts int64 [documents]


def cached(documents: datasets.Dataset, key: str, make: Callable[[], datasets.Dataset]) -> Flat:
    """The column `input_ids` that `make` returns, as one array, and where each row starts in it.

    One process makes the file, and others that want the same file wait for it.

    Arguments:
        documents: their cache is the place of the file. If they have none, the arrays are in memory.
        key: what the file's contents depend on.
    """
    if not documents.cache_files:
        rows = make()
        return np.concatenate([np.empty(0, np.int32), *_chunks(rows)]), _starts(rows)
    file = flat_file(documents, key)
    if not file.exists():
        with FileLock(f"{file}.lock", poll_interval=POLL):
            if not file.exists():
                _write(file, make())
    return open_flat(file)


def flat_file(documents: datasets.Dataset, key: str) -> Path:
    """The file of the ids, beside the first file of the documents' cache."""
    return Path(documents.cache_files[0]["filename"]).parent / f"tokens-{key}.npy"


def open_flat(file: Path | str) -> Flat:
    """Map a file. Its pages are read when they are used, and are not this process's own memory."""
    # Mode "c", copy on write: torch warns of an array that may not be written to.
    return np.load(file, mmap_mode="c"), np.load(f"{file}{STARTS}")


def processors() -> int:
    """How many processes to tokenise with: all processors of this process, if they are more than a few."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 32) if count >= 4 else 1


def _write(file: Path, rows: datasets.Dataset) -> None:
    """Both files, each complete or absent. The ids come last: where they are, the starts are, too."""
    starts = _starts(rows)
    with _replacing(Path(f"{file}{STARTS}")) as handle:
        np.save(handle, starts)
    total = sum(len(chunk) for chunk in _chunks(rows))
    with _replacing(file) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(handle, header)
        for chunk in _chunks(rows):
            handle.write(chunk.tobytes())
    for each in rows.cache_files:  # the same ids once more
        with suppress(OSError):
            Path(each["filename"]).unlink()


def _chunks(rows: datasets.Dataset) -> Iterator[np.ndarray]:
    """The ids of some rows at a time."""
    return (chunk.flatten().to_numpy() for chunk in rows.data.column("input_ids").chunks)


def _starts(rows: datasets.Dataset) -> np.ndarray:
    sizes = [chunk.value_lengths().to_numpy() for chunk in rows.data.column("input_ids").chunks]
    ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]), dtype=np.int64)
    return ends[:-1]


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name when it is complete."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as handle:
            yield handle
        os.replace(unfinished, file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
