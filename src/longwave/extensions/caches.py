"""Which t a key/value cache was filled at, and whether a forward may go on with it.

A cache holds keys after their rotation. In all layers but the first, the keys came from hidden states, and these were
computed under the t of that moment. So a cache belongs to one t (for each row), and remembers this t.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from longwave.extensions.handle import Extension, extension, find_extension
from longwave.extensions.lengths import counted_positions, hides, over_hidden, row_ends, row_starts

FILLED_AT = "_longwave_factors"
COUNTED = "_longwave_counted"  # on a cache: whether the positions of its keys pass over hidden tokens

Factors = tuple[float, ...]  # one for all rows, or one for each


def factors_of(factor: float | Tensor) -> Factors:
    """One t for all rows; where the rows differ, one t for each."""
    found = tuple(factor.tolist()) if isinstance(factor, Tensor) else (float(factor),)
    return found if len(set(found)) > 1 else found[:1]


def adopt(model: nn.Module, cache: Cache, *, whole: bool) -> None:
    """Prepare a cache for a generation at the t in force: a cache of another t is emptied if the whole text is given.

    Raises:
        ValueError: if a cache of another t is given without the whole text.
    """
    handle = extension(model)
    factor = handle.dial.now.factor
    assert factor is not None
    now = factors_of(factor)
    if int(cache.get_seq_length()):
        before = getattr(cache, FILLED_AT, None)
        if before is None or not _agree(handle, before, now):
            if not whole:
                at = "by a forward of the model" if before is None else f"at t = {_shown(before)}"
                raise ValueError(
                    f"the cache was filled {at}, this call runs at t = {_shown(now)}. Pass the whole text as "
                    "input_ids (it is then computed again), or fix t from the first call on: "
                    'set_policy(model, "fixed", t).'
                )
            cache.reset()
    setattr(cache, FILLED_AT, now)
    setattr(cache, COUNTED, True)


def before_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """For a forward outside of `generate`: its positions if its mask hides tokens; checks and marks the cache.

    Raises:
        ValueError: if the cache holds keys of another t than the one this forward runs at.
    """
    handle = find_extension(model)
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    if handle is None or tokens is None or not tokens.shape[1]:
        return None
    cache, positions, mask = given.get("past_key_values"), given.get("position_ids"), given.get("attention_mask")
    changed = None
    if hides(mask):
        changed = _positions(handle, mask, tokens.shape[1], positions, cache)
        positions = positions if changed is None else changed
    if isinstance(cache, Cache):
        if hides(mask):
            setattr(cache, COUNTED, positions is not None)
        _check(handle, cache, tokens.shape[1], positions)
    return None if changed is None else {"position_ids": changed}


def _positions(handle: Extension, mask: Tensor, count: int, given: Tensor | None, cache: Any) -> Tensor | None:
    """Position ids where the mask hides tokens; None to leave them as they are.

    Within L the plain model runs, and has its own positions. Beyond L a row is what it is without its hidden tokens.
    """
    if given is not None:
        plain = given.ndim != 2 or _is_plain(handle, int(given.max()) + 1)
        return None if plain else over_hidden(given, mask)
    asked = handle.dial.now.factor is None or handle.attention is not None
    if not (asked and _takes_positions(handle.host)):
        return None
    past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if past and hides(mask[:, :past]):  # its keys stand where the forwards before this one put them
        counted = getattr(cache, COUNTED, not _is_plain(handle, past))
    else:
        counted = not _is_plain(handle, past + count)
    return counted_positions(mask, count) if counted else None


def _is_plain(handle: Extension, columns: int) -> bool:
    """Whether so many columns run the plain model, hidden tokens included."""
    dial = handle.dial
    if columns > dial.original_length:
        return False
    return set(dial.now.row_factors) == {1.0} if dial.now.factor is not None else dial.factor_for(columns) == 1


def _takes_positions(model: Any) -> bool:
    """Whether it is a text model that takes position ids. Models with images count in their own way."""
    plain_text = model.config.get_text_config(decoder=True) is model.config
    return plain_text and "position_ids" in inspect.signature(model.forward).parameters


def _check(handle: Extension, cache: Cache, count: int, positions: Tensor | None) -> None:
    past, factor = int(cache.get_seq_length()), handle.dial.now.factor
    if positions is None:
        ends, starts = [past + count], [past]
    else:
        ends, starts = row_ends(positions).tolist(), row_starts(positions).tolist()
    now = factors_of(_at(handle, ends) if factor is None else factor)
    if past:
        before = getattr(cache, FILLED_AT, None)
        if before is None:  # a cache that a forward made for itself
            before = factors_of(_at(handle, starts)) if factor is None else now
        if not _agree(handle, before, now):
            raise ValueError(
                f"the cache was filled at t = {_shown(before)}, but {max(ends)} tokens run at t = {_shown(now)}. "
                'Use model.generate, or call set_policy(model, "fixed", t) before the cache is filled.'
            )
    setattr(cache, FILLED_AT, now)


def _at(handle: Extension, lengths: Sequence[int]) -> Tensor:
    return torch.tensor([handle.dial.factor_for(max(length, 1)) for length in lengths], dtype=torch.float64)


def _agree(handle: Extension, before: Factors, now: Factors) -> bool:
    """Whether keys rotated at one t serve at the other t: equal t, or a trajectory that does not move between them."""
    count = max(len(before), len(now))
    if {len(before), len(now)} - {1, count}:
        return False
    pairs = {(a, b) for a, b in zip(before * (count // len(before)), now * (count // len(now)), strict=True) if a != b}
    return all(handle.same(a, b) for a, b in pairs)


def _shown(factors: Factors) -> str:
    return ", ".join(f"{factor:.6g}" for factor in factors)
