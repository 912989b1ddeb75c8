"""What one process of a launch finds out, told to the others on its node."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import psutil
from filelock import FileLock

from longwave.data.flat import POLL
from longwave.files import make_folder, read_json, write_json

# Set by torchrun and accelerate alike for all processes of a launch.
OF_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE")
KEPT = 7 * 86400  # seconds that such files are kept
_calls = count()


def once_per_node(make: Callable[[], Any]) -> Any:
    """What `make` returns, a value of JSON. One process of a launch calls it, and the others on its node wait.

    A process group need not exist yet. The processes must call this function in the same order. Processes that were not
    started by the same launcher each call `make`.
    """
    number = next(_calls)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return make()
    folder = make_folder(Path(datasets.config.HF_DATASETS_CACHE) / "longwave-launches")
    file = folder / f"{_launch()}-{number}.json"
    with FileLock(f"{file}.lock", poll_interval=POLL):
        if not file.exists():
            _tidy(folder)
            write_json(file, make())
    return read_json(file)


def _launch() -> str:
    """A name that the processes of a launch on a node share: their launcher, and what it told them."""
    launcher = psutil.Process(os.getppid())
    parts = [socket.gethostname(), launcher.pid, launcher.create_time(), *(os.environ.get(name) for name in OF_LAUNCH)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _tidy(folder: Path) -> None:
    """Delete the files of launches that are over."""
    for file in folder.iterdir():
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > KEPT:
                file.unlink()
