"""Checkpoints that are complete if they have their name, for a process that may be killed at any time."""

from __future__ import annotations

import shutil
from pathlib import Path

STAGING = ".partial"


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first."""
    found = [path for path in root.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(path.name.rpartition("-")[2])


def discard(folder: Path) -> None:
    """Delete a folder, and what an earlier call that was killed left of it: half of one never has its name."""
    doomed = folder.with_name(f".{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def publish(root: Path, name: str, *, keep: int) -> None:
    """Give a checkpoint written under the staging folder its name, then delete all but the last `keep`."""
    discard(root / name)  # of an attempt that went on from an older checkpoint
    (root / STAGING / name).rename(root / name)
    shutil.rmtree(root / STAGING)
    for old in checkpoints(root)[:-keep]:
        discard(old)
