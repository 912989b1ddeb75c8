"""Context lengths: how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable

LONGEST_DEFAULT = 16.0  # lengths by default: at most 16 times L
LONG = 2**60  # tokens; every multiple that is a length at all is one of so long a model


def check_spelling(lengths: str | None) -> None:
    """Refuse a text that names no lengths, before the model's own length is known; None names the default.

    Raises:
        ValueError: as `parse_lengths`.
    """
    if lengths is not None:
        parse_lengths(lengths, LONG)


def parse_lengths(lengths: str | Iterable[int | str], original_length: int) -> list[int]:
    """Token counts from `"1x,2x,4096"` or a list of such, in the order given, repetitions dropped.

    `2x` is twice the original length, `0.5x` half of it; a bare number is a number of tokens.

    Raises:
        ValueError: for anything else, or lengths below 2 tokens.
    """
    parts = lengths.split(",") if isinstance(lengths, str) else [str(length) for length in lengths]
    counts = [_parse(part.strip(), original_length) for part in parts if part.strip()]
    if not counts:
        raise ValueError("no lengths given. Write for example 1x,2x,4x or 2048,4096.")
    return list(dict.fromkeys(counts))


def _parse(part: str, original_length: int) -> int:
    try:
        count = float(part[:-1]) * original_length if part.endswith("x") else float(int(part))
    except ValueError:
        count = math.nan
    if not (math.isfinite(count) and count >= 2):
        raise ValueError(f"bad length {part!r}. Write 2x (times the original length) or 4096 (tokens), at least 2.")
    return round(count)


def doublings(factor: float) -> str:
    """Lengths from 1x to the largest power of two within `factor`: `"1x,2x,4x"`."""
    return ",".join(f"{2**k}x" for k in range(math.floor(math.log2(factor)) + 1))
