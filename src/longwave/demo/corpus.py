"""The text that every machine has: the Python standard library's own sources, split by file."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from pathlib import Path
from typing import Literal, get_args

from longwave.files import make_folder, write_text

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def stdlib_files(split: Split) -> list[Path]:
    """Standard-library ``.py`` files of one split, sorted by path; tests and installed packages left out.

    One file in ten is held out, chosen by a hash of its path relative to the library: the split is
    the same on every machine and a new file never moves an old one across it.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen = []
    for folder, inside, names in os.walk(root):
        inside[:] = set(inside) - LEFT_OUT  # not entered: an environment's packages are many
        for name in names:
            path = Path(folder, name)
            parts = path.relative_to(root).parts
            heldout = hashlib.sha256("/".join(parts).encode()).digest()[0] % 10 == 0
            if path.suffix == ".py" and heldout == (split == "heldout"):
                chosen.append(path)
    return sorted(chosen)


def write_corpus(folder: Path, limit: int | None = None) -> dict[str, Path]:
    """Write both splits as jsonl, a file of the library a line, so that any command can be run on them again.

    `limit`: characters per split, reached in an order that mixes the library's packages; None for all.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    make_folder(folder)
    written: dict[str, Path] = {}
    for split in SPLITS:
        rows, size = [], 0
        for path in sorted(stdlib_files(split), key=lambda path: hashlib.sha256(path.name.encode()).digest()):
            if limit is not None and size >= limit:
                break
            text = path.read_text("utf-8", errors="replace")
            rows.append(json.dumps({"file": path.relative_to(root).as_posix(), "text": text}) + "\n")
            size += len(text)
        written[split] = folder / f"{split}.jsonl"
        write_text(written[split], "".join(rows))
    return written
