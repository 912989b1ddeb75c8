"""How lengths are marked that are longer than the longest real window that a row was trained on."""

from __future__ import annotations

from collections.abc import Iterable

from longwave.report.ratios import ratio_text

SIGN = "*"
LONGEST = "the longest window that the row was trained on"
LEGEND = f"≤4x: longest window trained on; {SIGN} beyond it: extrapolation"
HOLLOW = f"hollow: longer than {LONGEST}"


def is_known(trained: Iterable[int | None]) -> bool:
    """Whether any row says what it was trained on; records of older versions do not."""
    return any(length is not None for length in trained)


def is_beyond(length: int, trained: int | None) -> bool:
    """Whether a length is extrapolation; never where it is not known what the row was trained on."""
    return trained is not None and length > trained


def sign(length: int, trained: int | None) -> str:
    """`*` for a length that is extrapolation."""
    return SIGN if is_beyond(length, trained) else ""


def window_text(trained: int | None, original_length: int) -> str:
    """The longest window trained on, in units of L: `4x`, and `?` where it is not known."""
    return "?" if trained is None else ratio_text(trained, original_length)
