"""Checkpoints for a process that may be killed at any time: a checkpoint that has its name is complete."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.training.frozen import frozen_names

if TYPE_CHECKING:
    from torch import nn

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


def require_complete(model: nn.Module, found: Any, root: Path) -> None:
    """A checkpoint has all weights of the model and no others.

    It holds a tensor that has two names (tied embeddings) once: the other name is not missing. Frozen weights are the
    base's, and need not be there.

    Arguments:
        found: what `load_state_dict` found: `missing_keys` and `unexpected_keys`.
        root: the folder of the checkpoints.

    Raises:
        ValueError: for a parameter that only the model or only the checkpoint has. The Trainer would only warn.
    """
    names: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), set()).add(name)
    missing = set(found.missing_keys) - frozen_names(model)
    lacking = sorted(group.pop() for group in names.values() if group <= missing)
    if wrong := [*lacking, *found.unexpected_keys]:
        raise ValueError(
            f"the last checkpoint in {root} is not of this model: {wrong[0]} is "
            f"{'missing' if lacking else 'unknown'}. Remove it to go on from the one before."
        )
