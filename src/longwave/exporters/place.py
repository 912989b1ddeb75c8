"""Where an export goes: a folder that is checked first, filled aside, and put in its place as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from longwave.checkpoints.folder import is_export
from longwave.files import check_output, make_folder, share, umask


def check_place(output: Path, *, overwrite: bool) -> Path:
    """The output as an absolute path; a `ValueError` if a finished folder could not be moved there."""
    output = output.resolve()  # what a link leads to is replaced, not the link
    if output == Path.cwd() or output in Path.cwd().parents or output.is_mount():
        raise ValueError(f"output {output} cannot be replaced as a whole. Give a new folder inside it.")
    check_output(output, overwrite=overwrite)
    if output.is_dir() and any(output.iterdir()) and not is_export(output):
        raise ValueError(
            f"output folder {output} is not empty, and it is no export: --overwrite replaces exports only. Choose "
            "another folder."
        )
    place = _existing(output)
    if not place.is_dir():
        raise ValueError(f"{place} is a file, so it can hold no folder. Choose another output.")
    if not os.access(place, os.W_OK) or shutil.disk_usage(place).total == 0:
        raise ValueError(f"cannot write to {place}. Choose another output.")
    return output


def keep_apart(output: Path, read: Iterable[Path]) -> None:
    """Refuse an output that would replace a folder that is read, or lie inside of one."""
    for folder in {path.resolve() for path in read}:
        if output == folder or output in folder.parents or folder in output.parents:
            raise ValueError(
                f"output {output} and the model in {folder} lie inside one another. Choose another output."
            )


def check_room(needed: int, output: Path) -> None:
    """Refuse an output whose disk has not `needed` bytes free."""
    place = _existing(output)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{place} has {free / 1e9:.1f} GB free, the export needs {needed / 1e9:.1f} GB. Make room or choose "
            "another --output."
        )


@contextmanager
def aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and is gone when it does not."""
    make_folder(output.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    os.chmod(partial, 0o777 & ~umask())  # mkdtemp makes 0700; exports are meant to be shared
    try:
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"the disk of {output} is full: nothing was written. Make room and try again.") from None
        raise
    share(partial.rglob("*.safetensors"))
    _put(partial, output)


def _put(partial: Path, output: Path) -> None:
    """Move the finished folder to its place. The folder that was there is deleted after that."""
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    try:
        if output.exists():
            os.replace(output, old / "was")
        try:
            os.replace(partial, output)
        except OSError as error:
            if (old / "was").exists():
                os.replace(old / "was", output)
            raise ValueError(f"cannot move the export to {output} ({error}). It is complete in {partial}.") from None
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _existing(output: Path) -> Path:
    return next(parent for parent in output.parents if parent.exists())
