"""Files that survive a crash: atomic writes, hashes, and the record of what made a result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

EXPORT_RECORD = "longwave-export.json"  # in a folder of `longwave export`, beside the files of its target
STRUCTURED = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # data that is parsed
PACKED = (".gz", ".bz2", ".xz", ".zst")
RECORDED = ("longwave", "torch", "transformers", "accelerate", "datasets", "torchdiffeq", "numpy")


def write_text(path: Path | str, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of either."""
    path = Path(path)
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


def umask() -> int:
    """Permissions that this process takes off new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path | str, value: Any) -> None:
    """`write_text` of strict JSON: NaN and infinity are refused, other readers would choke on them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; a damaged one is a `ValueError` that names it."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Restore or delete the file.") from None


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def data_identity(hashes: dict[str, str]) -> list[list[str]]:
    """What makes data files the same text: contents, how they are read, and their order, but no names.

    Arguments:
        hashes: SHA-256 of each file by its path, in the order in which they are read.
    """
    return [[data_suffix(name) or "text", sha] for name, sha in hashes.items()]


def data_suffix(name: Path | str) -> str:
    """The suffix that says how a data file is read, `.jsonl` of A.JSONL.gz; empty for text."""
    path = Path(str(name).lower())
    if path.suffix in PACKED:
        path = path.with_suffix("")
    return path.suffix if path.suffix in STRUCTURED else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, quoted for a shell."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([program, *sys.argv[1:]])


def check_data(paths: Iterable[Path | str]) -> list[Path]:
    """The paths; a `ValueError` for one that does not exist."""
    found = [Path(path) for path in paths]
    for path in found:
        if not path.exists():
            raise ValueError(f"data {path} does not exist. Pass text, jsonl or parquet files, or a folder of them.")
    return found


def check_model(path: Path | str) -> None:
    """Refuse a model folder that does not exist, where `path` cannot be a name on a hub."""
    folder = Path(path)
    if not str(path):
        raise ValueError("the model's name is empty. Give a folder, or OWNER/NAME of the Hugging Face hub.")
    if folder.is_file():
        raise ValueError(f"{path} is a file. Give the folder that it lies in.")
    if not folder.exists() and (folder.is_absolute() or str(path).startswith(".") or len(folder.parts) > 2):
        raise ValueError(f"model folder {path} does not exist.")


def check_output(folder: Path | str, *, overwrite: bool = False) -> Path:
    """A folder that results may go into; one that holds anything is a `ValueError` unless `overwrite`."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is a file. Choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"output folder {folder} is not empty. Choose another or pass --overwrite.")
    return folder


def prepare_output(folder: Path | str, *, overwrite: bool = False) -> Path:
    """`check_output`, then create it; nothing in it is deleted."""
    folder = check_output(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
