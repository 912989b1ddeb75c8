"""Which models can stand in one table: those trained at one length, and measured under the same settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Table:
    """The rows of one step of a suite that are known so far.

    Arguments:
        step: the name of the step.
    """

    step: str
    _first: tuple[str, dict[str, Any]] | None = field(default=None, init=False)

    def add(self, model: str, settings: Mapping[str, Any]) -> None:
        """Add a row of a model; a `ValueError` if its settings are not those of the rows before."""
        if self._first is None:
            self._first = model, dict(settings)
        other, known = self._first
        names = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
        if names:
            one, two = name_beside(other, model), name_beside(model, other)
            differing = ", ".join(
                f"{name} {known.get(name)} of {one} and {settings.get(name)} of {two}" for name in names
            )
            raise ValueError(
                f"the rows of {self.step} differ in their settings ({differing}) and cannot be compared. Models with "
                "other tokenizers read other tokens: measure them apart."
            )


def check_trained_lengths(lengths: Mapping[str, int]) -> None:
    """Refuse models of different L: `2x` would mean another length for each.

    Arguments:
        lengths: L of each model, by its path.
    """
    if len(set(lengths.values())) > 1:
        trained = ", ".join(f"{model_name(path)} {length}" for path, length in lengths.items())
        raise ValueError(f"the models were trained at different lengths ({trained}). Compare them apart.")


def model_name(path: str, parts: int = 1) -> str:
    """The last parts of a model's path or hub name; for `.` and `..` the names of the folders that they mean."""
    whole = Path(os.path.abspath(path))  # not resolved: a link has a name of its own
    return str(Path(*whole.relative_to(whole.anchor).parts[-parts:]))


def name_beside(path: str, other: str) -> str:
    """The name of a model beside another one: its path where both names are the same."""
    return path if model_name(path) == model_name(other) else model_name(path)
