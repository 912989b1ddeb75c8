"""Files that survive a crash: atomic writes, hashes, and folders that results may go into."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path | str, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of either."""
    path = Path(path)
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~umask())  # mkstemp makes 0600; results are meant to be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Within, an error of the operating system is a `ValueError` that says what cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror or error}. Choose another output.") from None


def make_folder(folder: Path | str) -> Path:
    """Create a folder and those above it; one that is there stays as it is.

    Raises:
        ValueError: if it cannot be created.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def umask() -> int:
    """Permissions that this process takes off new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def share(paths: Iterable[Path]) -> None:
    """Give files that were just written the permissions of other new files: safetensors makes its files 0600."""
    mode = 0o666 & ~umask()
    for path in paths:
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write_json(path: Path | str, value: Any) -> None:
    """`write_text` of strict JSON: NaN and infinity are refused, other readers would choke on them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; a damaged one is a `ValueError` that names it."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Restore or delete the file.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read. Restore or delete the file.") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; a `ValueError` that names the file if it does not."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object, but a {type(found).__name__}. Restore the file.")
    return found


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_output(folder: Path | str, *, overwrite: bool = False) -> Path:
    """A folder that results may go into; one that holds anything is a `ValueError` unless `overwrite`."""
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(f"the output must be a folder's path, got {type(folder).__name__}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is a file. Choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"output folder {folder} is not empty. Choose another or pass --overwrite (in Python overwrite=True)."
        )
    return folder


def prepare_output(folder: Path | str, *, overwrite: bool = False) -> Path:
    """`check_output`, then create it; nothing in it is deleted."""
    return make_folder(check_output(folder, overwrite=overwrite))
