"""How numbers are written in tables, plots and sentences."""

from __future__ import annotations


def number(value: float) -> str:
    """Three significant digits at least, and two decimals at most: 2.75, 12.9, 1,234."""
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0


def percent(value: float) -> str:
    """A share: 75 %."""
    return f"{100 * value:.0f} %"


def counted(count: int, noun: str) -> str:
    """`1 window`, `2 windows`, `3 trajectories`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
