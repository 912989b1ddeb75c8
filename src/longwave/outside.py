"""Checks of values that come from a file: each error names the file and the field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outside:
    """A file whose values are checked.

    Arguments:
        path: of the file.
        remedy: what to do about a damaged value.
    """

    path: Path | str
    remedy: str = "Measure it again."

    def damaged(self, why: str) -> ValueError:
        """The error for a value that is not as it must be."""
        return ValueError(f"{self.path} is damaged: {why}. {self.remedy}")

    def require(self, value: Any, keys: Sequence[str], what: str) -> None:
        """An object with all of `keys`."""
        lacking = [key for key in keys if not isinstance(value, dict) or key not in value]
        if lacking:
            raise self.damaged(f"{what} lacks {', '.join(lacking)}")

    def filled(self, value: Any, name: str) -> list[Any]:
        """A list that is not empty."""
        if not isinstance(value, list) or not value:
            raise self.damaged(f"its {name} must be a list that is not empty")
        return value

    def objects(self, value: dict[str, Any], keys: Sequence[str]) -> None:
        """An object, or null, under each of `keys` that is there."""
        for key in keys:
            if not isinstance(value.get(key), dict | None):
                raise self.damaged(f"its {key} must be an object or null")

    def texts(self, value: dict[str, Any], keys: Sequence[str]) -> None:
        """Text under each of `keys`."""
        for key in keys:
            if not isinstance(value.get(key), str):
                raise self.damaged(f"{key} is {value.get(key)!r} where text must be")

    def numbers(self, value: Any, keys: Sequence[str]) -> None:
        """A finite number under each of `keys`. JSON of other writers may hold NaN, or "6"."""
        for key in keys:
            self._number(value.get(key) if isinstance(value, dict) else None, key)

    def series(self, value: Any, name: str, count: int | None = None) -> None:
        """A list of finite numbers that is not empty.

        Arguments:
            name: of the list, for the message.
            count: how many there must be; None for any number.
        """
        for index, found in enumerate(self.filled(value, name)):
            self._number(found, f"{name}[{index}]")
        if count is not None and len(value) != count:
            raise self.damaged(f"the number of values in {name} is {len(value)} and must be {count}")

    def counts(self, value: Any, keys: Sequence[str]) -> None:
        """Whole numbers from 1 on under all of `keys`."""
        self.numbers(value, keys)
        for key in keys:
            if value[key] < 1 or value[key] != int(value[key]):
                raise self.damaged(f"{key} is {value[key]!r} where a whole number from 1 on must be")

    def columns(self, entry: dict[str, Any], keys: Sequence[str]) -> None:
        """Under each of `keys` a list of finite numbers. All lists are of one size, and not empty."""
        for key in keys:
            self.series(entry[key], key)
        sizes = {key: len(entry[key]) for key in keys}
        if len(set(sizes.values())) > 1:
            raise self.damaged(", ".join(f"{key} has {size} values" for key, size in sizes.items()))

    def _number(self, found: Any, name: str) -> None:
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self.damaged(f"{name} is {found!r} where a number must be")
