"""Look a name up in a table; a name that is not there is answered with the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
MANY = 24  # names, whose list would bury the nearest one


def look_up(what: str, name: str, table: Mapping[str, Value]) -> Value:
    """The entry of that name.

    Arguments:
        what: what the table holds, for the message: `method`, `evaluation`.

    Raises:
        ValueError: if there is none; the message offers the nearest name, or lists all.
    """
    if name not in table:
        raise ValueError(unknown(what, name, table))
    return table[name]


def unknown(what: str, name: object, available: Iterable[str]) -> str:
    """The message for a name that is none of those available."""
    return f"unknown {what} {name!r}. {offer(name, available)}"


def offer(name: object, available: Iterable[str]) -> str:
    """The nearest of the names available, and all of them; without the list where it is long and one is near."""
    names = [str(name) for name in available]
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    if near and len(names) > MANY:
        return f"Did you mean {near[0]!r}?"
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Available: {', '.join(names) or 'none'}."


def shortened(names: Iterable[object]) -> str:
    """Names for a message: the first eight, each cut at 40 characters."""
    found = [name if len(name) <= 40 else name[:37] + "..." for name in map(str, names)]
    return ", ".join(found[:8] + (["..."] if len(found) > 8 else [])) or "nothing"
