"""A function of an engine that a plugin wraps, and the check that it is the function that we know."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Hook:
    """A function of an engine that a plugin wraps.

    Arguments:
        module, name: where it is: `Class.method`, or a function of the module.
        parameters: its first parameters, as we know them.
        wrapped: makes the function that takes its place.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]

    def find(self) -> tuple[Any, str, Callable[..., Any]]:
        """The place of the function, its name there, and the function."""
        place: Any = import_module(self.module)
        *path, last = self.name.split(".")
        for part in path:
            place = getattr(place, part)
        return place, last, getattr(place, last)

    def difference(self) -> str | None:
        """What is other than we know; None if nothing is."""
        where = f"{self.module}.{self.name}"
        try:
            *_, found = self.find()
        except (ImportError, AttributeError):
            return f"{where} is not there"
        names = tuple(inspect.signature(found).parameters)
        if names[: len(self.parameters)] != self.parameters:
            return f"{where} takes {', '.join(names)}, and not {', '.join(self.parameters)}"
        return None

    def install(self) -> None:
        """Wrap the function, once."""
        if self.difference() is not None:
            return  # the plugin says so where it matters
        place, name, found = self.find()
        if getattr(found, "longwave", False):
            return
        made = functools.wraps(found)(self.wrapped(found))
        made.longwave = True  # type: ignore[attr-defined]
        setattr(place, name, made)


@dataclass(frozen=True)
class Releases:
    """The releases of an engine that a plugin was run with.

    Arguments:
        engine: its name.
        tested: as many parts of a version as count: `0.32`, `0.5.23`.
        variable: of the environment; set to 1, the plugin runs with others, too, whose hooks look the same.
    """

    engine: str
    tested: tuple[str, ...]
    variable: str

    def refusal(self, version: str) -> str | None:
        """That this version was not tested; None if it was."""
        known = any(version.split(".")[: each.count(".") + 1] == each.split(".") for each in self.tested)
        if known or os.environ.get(self.variable) == "1":
            return None
        return (
            f"the plugin was tested with {self.engine} {', '.join(self.tested)}, and this is {version}. "
            f"{self.variable}=1 tries it."
        )
