"""Any error in one or two lines: what is wrong, and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

import longwave

PACKAGE = Path(longwave.__file__).parent
MEMORY = "out of memory", "can't allocate memory", "not enough memory"  # how torch says it on its devices
COMPILED = RuntimeError, NotImplementedError, Exception  # what compiled libraries raise, without a frame of their own
SMALLER = "Take shorter texts, fewer --tokens-per-batch, --dtype bfloat16, or a larger device."


def explain(error: Exception) -> str:
    """What to tell a user of the command line.

    `ValueError` and `OSError` say it themselves, and at most two lines of them are told. Of anything else the
    traceback says who is at fault: a library, or longwave.
    """
    said = _lines(error)
    first = (said or [type(error).__name__])[0].rstrip(".")
    if _is_out_of_memory(error):
        return f"the memory does not suffice ({first.partition('. ')[0]}). {SMALLER}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("longwave"):
        install = "Install it" if error.name is None else f"Run: pip install {error.name.partition('.')[0]}"
        return f"a package is missing or does not work: {first}. {install}."
    if isinstance(error, ValueError | OSError):
        return "\n".join(said[:2]) or type(error).__name__
    where = _raised_in(error)
    kind = f"{type(error).__name__}: {first}" if said else type(error).__name__
    if where == "longwave":
        return (
            f"this is a fault of longwave, not yours ({kind}). "
            "Run the command again with --debug, and report what it prints."
        )
    return f"{where} gave up ({kind}). Check the files and options, or see with --debug where it happened."


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MEMORY)


def _raised_in(error: Exception) -> str:
    """The package whose code raised the error: that of the class if a library defines it, else of the last frame."""
    home = type(error).__module__.partition(".")[0]
    if home not in ("builtins", "longwave"):
        return home.removesuffix("_rust")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            return "a library" if type(error) in COMPILED else "longwave"
        if "site-packages" in path.parts:
            parts = path.parts
            return parts[len(parts) - parts[::-1].index("site-packages")].removesuffix(".py")
    return "a library" if type(error) in COMPILED else "longwave"
