"""How long a text a model reads: its trained length, its reach, and the t that a length runs at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from longwave.extensions.attach import rope_of
from longwave.extensions.handle import find_extension


def original_length_of(model: nn.Module) -> int:
    """L: the length of pre-training in tokens, the unit of lengths such as `2x`.

    Raises:
        ValueError: if the model has no rotary module, or its config does not tell L.
    """
    return rope_of(model).original_length


def max_length_of(model: nn.Module) -> int | None:
    """The longest sequence that an extended model accepts; None if the model sets no limit. See `reach_of`."""
    handle = find_extension(model)
    return None if handle is None or handle.dial.now.beyond != "error" else handle.max_length


def reach_of(model: nn.Module) -> int:
    """The longest sequence that the model is meant for, whether it accepts longer ones or not."""
    handle = find_extension(model)
    return original_length_of(model) if handle is None else handle.max_length


def check_lengths(model: nn.Module, lengths: Iterable[int]) -> None:
    """Refuse lengths beyond the model's maximum before anything is computed."""
    handle, longest = find_extension(model), max(lengths)
    if handle is None or handle.dial.now.beyond != "error":
        return
    if longest > (limit := handle.max_length):
        raise ValueError(
            f"length {longest} is beyond the maximum of {limit} tokens "
            f"({handle.max_factor:g} x {handle.original_length}). Choose lengths up to {limit}."
        )


@contextmanager
def fixed_length(model: nn.Module, length: int) -> Iterator[float | None]:
    """Within the block the model runs at its schedule's t for `length` tokens. Yields t, None if not extended.

    t belongs to the whole window. It is therefore fixed from the window's length, and not from the tokens of one
    forward. The official evaluation fed 4,096-token chunks into a cache, each chunk at a t of its own.
    """
    handle = find_extension(model)
    if handle is None:
        yield None
        return
    with handle.dial.held() as dial:
        factor = dial.factor_for(length)
        dial.turn("fixed", factor)
        yield factor
