"""Checkpoints for a process that may be killed at any time: a checkpoint that has its name is complete."""

from __future__ import annotations

import shutil
from pathlib import Path

STAGING = ".partial"


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first."""
    found = [path for path in root.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(path.name.rpartition("-")[2])


def discard(folder: Path) -> None:
    """Delete a folder, and the rest that a killed call may have left. A half-deleted folder never has the name."""
    doomed = folder.with_name(f".{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def publish(root: Path, name: str, *, keep: int) -> None:
    """Give a checkpoint written under the staging folder its name, then delete all but the last `keep`."""
    discard(root / name)  # a checkpoint of an attempt that started from an older checkpoint
    (root / STAGING / name).rename(root / name)
    shutil.rmtree(root / STAGING)
    for old in checkpoints(root)[:-keep]:
        discard(old)
