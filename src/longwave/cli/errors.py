"""Any error in one or two lines: what is wrong, and what to do."""

from __future__ import annotations

import traceback
from importlib.util import find_spec
from pathlib import Path

import longwave
from longwave.errors import first_line, is_out_of_memory, lines

PACKAGE = Path(longwave.__file__).parent
LIBRARIES = "site-packages", "dist-packages"  # folders of installed packages
PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "sklearn": "scikit-learn"}  # module -> what pip calls it
COMPILED = RuntimeError, NotImplementedError, Exception  # what compiled libraries raise, without a frame of their own
SMALLER = "Take shorter texts, fewer --tokens-per-batch, --dtype bfloat16, or a larger device."


def explain(error: Exception) -> str:
    """The message for a user of the command line.

    A `ValueError` or `OSError` gives its own message, at most two lines of it. For any other error the traceback tells
    who is at fault: a library, or longwave.
    """
    first = first_line(error)
    if is_out_of_memory(error):
        return f"the memory does not suffice ({first.partition('. ')[0]}). {SMALLER}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("longwave"):
        return f"a package is missing or does not work: {first}. {_install(error)}."
    if isinstance(error, ValueError | OSError) and "values to unpack" not in first:  # Python's, which is no message
        return "\n".join(lines(error)[:2])
    where = _raised_in(error)
    kind = type(error).__name__ if first == type(error).__name__ else f"{type(error).__name__}: {first}"
    if where == "longwave":
        return (
            f"this is a fault of longwave, not yours ({kind}). "
            "Run the command again with --debug, and report what it prints."
        )
    return f"{where} gave up ({kind}). Check the files and options, or see with --debug where it happened."


def _install(error: ImportError) -> str:
    if error.name is None:
        return "Install it"
    module = error.name.partition(".")[0]
    there = error.name != module or not isinstance(error, ModuleNotFoundError)  # but lacks what is asked of it
    upgrade = "--upgrade " if there and find_spec(module) is not None else ""
    return f"Run: pip install {upgrade}{PACKAGES.get(module, module)}"


def _raised_in(error: Exception) -> str:
    """The package whose code raised the error: the one that defines the error's class, or that of the last frame."""
    home = type(error).__module__.partition(".")[0]
    if home not in ("builtins", "longwave"):
        return home.removesuffix("_rust")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            compiled = type(error) in COMPILED and not (frame.line or "").startswith("raise")
            return "a library" if compiled else "longwave"
        for parent, child in zip(reversed(path.parts[:-1]), reversed(path.parts), strict=False):
            if parent in LIBRARIES:
                return child.removesuffix(".py")
    return "a library" if type(error) in COMPILED else "longwave"
