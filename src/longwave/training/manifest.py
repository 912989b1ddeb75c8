"""The manifest of a checkpoint: size and SHA-256 of each file. With it a damaged file is found before it is used."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from longwave.files import read_object, write_json

MANIFEST = "manifest.json"
FORMAT = 1
THREADS = 8  # that hash files at the same time
PYTHON = ("*.pt", "*.pth", "*.bin")  # what torch.save writes: zip files with check sums of their own

# What a checkpoint without a manifest must have: for each need any of these. DeepSpeed keeps its own in global_step*.
NEEDED = (
    ("trainer_state.json",),
    ("model.safetensors", "pytorch_model*", "global_step*"),
    ("optimizer.pt", "optimizer*", "global_step*"),
    ("scheduler.pt", "global_step*"),
    ("rng_state*.pth",),
)


def write_manifest(folder: Path) -> None:
    """List the files of a complete checkpoint. Each file is on the disk before the manifest is."""
    files = _files(folder)
    sizes = {name: {"size": size, "sha256": digest} for name, (size, digest) in _each(_stored, folder, files)}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": sizes})


def has_manifest(folder: Path) -> bool:
    """Whether a checkpoint lists its files; those of older versions do not."""
    return (folder / MANIFEST).is_file()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is.

    Without a manifest only what the files say about themselves can be checked: that those that are needed are there,
    and whole. Not every changed byte is found then.
    """
    try:
        return _differs(folder) if has_manifest(folder) else _unlisted(folder)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror or error})"


def _differs(folder: Path) -> str | None:
    """The first file that is not as the manifest says. Sizes come first: they cost nothing."""
    try:
        listed: dict[str, Any] = read_object(folder / MANIFEST)["files"]
        sizes = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is no manifest"
    for name, (size, _) in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
    changed = (name for name, digest in _each(_digest, folder, sizes) if digest != sizes[name][1])
    return next((f"{name} has changed" for name in changed), None)


def _unlisted(folder: Path) -> str | None:
    """The first file that is missing or cannot be whole, in a checkpoint without a manifest."""
    for names in NEEDED:
        if not any(any(folder.glob(name)) for name in names):
            return f"{names[0]} is missing"
    for name in _files(folder):
        try:
            _open(folder / name)
        except OSError:
            raise
        except Exception as error:  # of three libraries, each with classes of its own
            return f"{name} is not whole ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return None


def _open(path: Path) -> None:
    """Read a file as far as its format can tell that it is whole."""
    from safetensors import safe_open

    if path.suffix == ".json":
        read_object(path)
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif any(path.match(pattern) for pattern in PYTHON):
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} in it has changed")


def _files(folder: Path) -> list[str]:
    """Every file below a folder but the manifest, by its name from there."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _each(function: Callable[[Path], Any], folder: Path, names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """The function of each file by name. Several at a time: hashing lets other threads run."""
    names = list(names)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        yield from zip(names, pool.map(function, (folder / name for name in names)), strict=True)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _stored(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file that is on the disk: a full disk of a server may say so only here."""
    with path.open("r+b") as handle:
        os.fsync(handle.fileno())
        return path.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest()
