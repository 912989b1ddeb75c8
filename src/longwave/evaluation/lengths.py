"""Context lengths: how they are written, and the length factor a model runs each of them at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from longwave.attach import rope_of, set_policy
from longwave.generation import factor_for_a_while, rotaries_of


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


def original_length_of(model: nn.Module) -> int:
    """L: what the model was pre-trained at, the unit of lengths such as `2x`.

    Raises:
        ValueError: if the model has no rotary module or does not tell.
    """
    return rope_of(model).original_length


def max_length_of(model: nn.Module) -> int | None:
    """The longest sequence that an extended model accepts, None if it sets no limit; see `reach_of`."""
    limits = [rotary.max_length for rotary in rotaries_of(model) if rotary.beyond == "error"]
    return min(limits) if limits else None


def reach_of(model: nn.Module) -> int:
    """The longest sequence that the model is meant for, whether it accepts longer ones or not."""
    found = [rotary.max_length for rotary in rotaries_of(model)]
    return min(found) if found else original_length_of(model)


def check_lengths(model: nn.Module, lengths: Iterable[int]) -> None:
    """Refuse lengths beyond the model's maximum before anything is computed."""
    limit = max_length_of(model)
    longest = max(lengths)
    if limit is not None and longest > limit:
        trajectory = rotaries_of(model)[0].trajectory
        raise ValueError(
            f"length {longest} is beyond the maximum of {limit} tokens "
            f"({trajectory.max_factor:g} x {trajectory.rope.original_length}). Choose lengths up to {limit}."
        )


@contextmanager
def fixed_length(model: nn.Module, length: int) -> Iterator[float | None]:
    """Within, the model runs at the t its schedule gives `length` tokens. Yields t, None if not extended.

    t belongs to the whole window, so it is fixed from its length and not left to whatever a forward sees:
    the official evaluation fed 4,096-token chunks into a cache, each at a t of its own.
    """
    rotaries = rotaries_of(model)
    if not rotaries:
        yield None
        return
    with factor_for_a_while(rotaries):
        factor = rotaries[0].factor_for(length)
        set_policy(model, "fixed", factor)
        yield factor
