"""The text that every machine has: the Python standard library's own sources, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import Literal


def stdlib_files(split: Literal["train", "heldout"]) -> list[Path]:
    """Standard-library ``.py`` files of one split, sorted by path; tests and installed packages left out.

    One file in ten is held out, chosen by a hash of its path relative to the library: the split is
    the same on every machine and a new file never moves an old one across it.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"} & set(parts[:-1]):
            continue
        heldout = hashlib.sha256("/".join(parts).encode()).digest()[0] % 10 == 0
        if heldout == (split == "heldout"):
            chosen.append(path)
    return chosen
