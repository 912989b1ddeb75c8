"""Checkpoints for a process that may be killed at any time: a checkpoint that has its name is complete."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.training.frozen import frozen_names
from longwave.training.manifest import MANIFEST, damage, has_manifest, write_manifest

if TYPE_CHECKING:
    from torch import nn

STAGING = ".partial"
DAMAGED = "damaged-"  # before the name of a checkpoint that was set aside
NAME = re.compile(r"checkpoint-\d+")


def named(root: Path) -> list[Path]:
    """Every folder below `root` that has the name of a checkpoint, oldest first."""
    return sorted((path for path in root.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=checkpoint_step)


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first; their files are not read."""
    return [path for path in named(root) if (path / "trainer_state.json").is_file()]


def checkpoint_step(path: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(path.name.rpartition("-")[2])


def newest_whole(root: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is not damaged, None if there are no checkpoints; and what is wrong with newer ones.

    Raises:
        ValueError: if there are checkpoints, and all are damaged.
    """
    found, faults = named(root), dict[Path, str]()
    for index in reversed(range(len(found))):
        path = found[index]
        # Only an older version of longwave wrote none, and that was before.
        lost = not has_manifest(path) and any(has_manifest(older) for older in found[:index])
        fault = f"{MANIFEST} is missing" if lost else damage(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    if faults:
        told = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
        raise ValueError(
            f"every checkpoint in {root} is damaged ({told}). Restore the files, or start again with --overwrite."
        )
    return None, faults


def set_aside(path: Path) -> Path:
    """Take its name off a damaged checkpoint: it would count as the newest. Nothing of it is deleted."""
    aside = path.with_name(f"{DAMAGED}{path.name}")
    discard(aside)
    return path.rename(aside)


def discard(folder: Path) -> None:
    """Delete a folder, and the rest that a killed call may have left. A half-deleted folder never has the name."""
    doomed = folder.with_name(f".{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def discard_rest(root: Path) -> None:
    """Delete what a call has left that did not come to its end: a save, or the deletion of an old checkpoint."""
    for path in (root / STAGING, *root.glob(".checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)


def publish(root: Path, name: str, *, keep: int) -> None:
    """Give a checkpoint written under the staging folder its manifest and its name, and delete all but the last `keep`.

    At any time a folder with the name of a checkpoint is whole, and as many older ones are there as before.
    """
    write_manifest(root / STAGING / name)
    discard(root / name)  # a checkpoint of an attempt that started from an older checkpoint
    (root / STAGING / name).rename(root / name)
    with suppress(FileNotFoundError):
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
