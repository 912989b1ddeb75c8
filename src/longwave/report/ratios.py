"""Lengths in units of L."""

from __future__ import annotations


def ratio_text(length: int, original_length: int) -> str:
    """A length in units of the trained one, e.g. `4x`."""
    return f"{length / original_length:.3g}x"
