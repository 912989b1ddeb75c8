"""The text that every machine has: the Python standard library's own sources, split by file."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path
from typing import Literal, get_args

from longwave.io import write_text

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)


def stdlib_files(split: Split) -> list[Path]:
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


def write_corpus(folder: Path) -> dict[str, Path]:
    """Write both splits as jsonl, one file of the library a line, for any command to be run on again."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split in SPLITS:
        rows = (
            {"file": path.relative_to(root).as_posix(), "text": path.read_text("utf-8", errors="replace")}
            for path in stdlib_files(split)
        )
        written[split] = folder / f"{split}.jsonl"
        write_text(written[split], "".join(json.dumps(row) + "\n" for row in rows))
    return written
