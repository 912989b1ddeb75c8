"""A disk that is full while a run writes: nothing is lost, and one sentence says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longwave.training.checkpoints import checkpoints

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TORCH = "inline_container.cc"  # where torch.save says that it cannot write, without a reason


@contextmanager
def told_when_full(folder: Path, root: Path) -> Iterator[None]:
    """Within, an error of a write to a full disk is a `ValueError` that says what is kept and what to do.

    Arguments:
        folder: that the run writes to.
        root: the folder of its checkpoints.
    """
    try:
        yield
    except Exception as error:
        reason = why_full(error)
        if reason is None:
            raise
        kept = checkpoints(root)
        stays = f"Nothing is lost up to {kept[-1].name}" if kept else "There is no checkpoint yet"
        goes = "goes on from there" if kept else "starts again"
        free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free"
        raise ValueError(
            f"cannot write to {folder}: {reason} ({free}). {stays}. Make room; then the same run with --resume {goes}."
        ) from error


def why_full(error: BaseException | None) -> str | None:
    """What the operating system said of a disk that is full, None for any other error.

    The libraries raise classes of their own, with its words or its number in the message.
    """
    while error is not None:
        text = str(error)
        for number in FULL:
            words = os.strerror(number)
            if getattr(error, "errno", None) == number or f"os error {number})" in text or words in text:
                return words
        if TORCH in text:
            return "torch could not write a file to its end"
        error = error.__cause__ or error.__context__
    return None
