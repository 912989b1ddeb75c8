"""What made a result: the command line, and the versions of the libraries that its numbers depend on."""

from __future__ import annotations

import platform
import shlex
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from longwave.files import read_object
from longwave.layout import TRAINING
from longwave.outside import Outside

RECORDED = ("longwave", "torch", "transformers", "accelerate", "datasets", "torchdiffeq", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
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


def training_of(folder: Path) -> dict[str, Any] | None:
    """training.json of a folder that `longwave train` wrote, None where there is none.

    Raises:
        ValueError: naming the file and the field that is not as `longwave train` writes it.
    """
    path = folder / TRAINING
    if not path.is_file():
        return None
    record, outside = read_object(path), Outside(path, "Restore the file, or delete it.")
    outside.objects(record, ("config", "data", "versions", "result"))
    outside.texts(record, [key for key in ("command", "model") if key in record])
    outside.texts(record.get("data") or {}, list(record.get("data") or {}))
    outside.numbers(record, [key for key in ("seed", "world_size") if record.get(key) is not None])
    outside.numbers(
        result := record.get("result") or {}, [key for key in ("tokens", "trained_length") if result.get(key)]
    )
    try:
        shlex.split(record.get("command", ""))
    except ValueError as error:
        raise outside.damaged(f"command is no line of a shell ({error})") from None
    return record
