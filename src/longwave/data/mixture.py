"""Data with shares: `books@0.3` is three tenths of the tokens that a run reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longwave.data.paths import check_data, split_share

logger = logging.getLogger("longwave")

BLOCK = 1000  # rows in which every share is met exactly
LEAST = 1 / BLOCK
REMEDY = "Write a share such as books@0.3."


@dataclass(frozen=True)
class Part:
    """Data that are read as one stream.

    Arguments:
        paths: files, folders and data sets of the hub.
        share: of all tokens that a run reads; 1 for data that are not mixed.
    """

    paths: tuple[str, ...]
    share: float = 1.0

    @property
    def name(self) -> str:
        """Its paths, for messages and records."""
        return ", ".join(self.paths)


def part_of(given: Path | str) -> tuple[str, float | None]:
    """A path, and its share, None where none is given.

    Raises:
        ValueError: for a path that does not exist, and for a share that is none.
    """
    path, text = split_share(given)
    check_data([path])
    if not text:
        return path, None
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"the share of data {path} must be above 0 and at most 1, got {text}. {REMEDY}")
    if share < LEAST:
        raise ValueError(f"the share of data {path} must be at least {LEAST:g}, got {text}. {REMEDY}")
    return path, share


def parts_of(data: Iterable[Path | str]) -> tuple[Part, ...]:
    """The parts of a mixture. Without shares, all data are one part.

    Data without a share are one part and have what the others leave. If all data have shares and these leave
    something, they are raised in proportion, and the logger `longwave` says so.

    Raises:
        ValueError: for shares that cannot be, and for no data at all.
    """
    given = [part_of(each) for each in data]
    if not given:
        raise ValueError("there are no data. Pass --data PATH.")
    rest = tuple(path for path, share in given if share is None)
    parts = [Part((path,), share) for path, share in given if share is not None]
    if not parts:
        return (Part(rest),)
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1 or name in rest), None):
        raise ValueError(f"data {twice} are given twice. Leave one out.")
    total = sum(part.share for part in parts)
    if total > 1 + 1e-9:
        raise ValueError(f"the shares of the data are {total:g} in all, and must be at most 1. Lower one.")
    if rest and 1 - total < LEAST:
        raise ValueError(f"the shares of the other data leave nothing for data {', '.join(rest)}. Lower one.")
    if rest:
        return (*parts, Part(rest, 1 - total))
    if total < 1 - 1e-9:
        parts = [replace(part, share=part.share / total) for part in parts]
        shown = ", ".join(f"{part.name} {part.share:.3g}" for part in parts)
        logger.warning("the shares of the data are %g in all, and are read in proportion: %s.", total, shown)
    return tuple(parts)


def quotas(shares: Sequence[float], block: int = BLOCK) -> list[int]:
    """How many rows of a block each part has: its share, rounded so that the block is full (largest remainder)."""
    exact = [share * block for share in shares]
    found = [math.floor(each + 1e-9) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))
    for k in by_remainder[: block - sum(found)]:
        found[k] += 1
    return found
