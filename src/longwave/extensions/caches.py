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
from longwave.extensions.lengths import padded_positions, row_ends, row_starts

FILLED_AT = "_longwave_factors"

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


def before_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """For a forward outside of `generate`: its positions if it has padding; checks and marks the cache.

    Raises:
        ValueError: if the cache holds keys of another t than the one this forward runs at.
    """
    handle = find_extension(model)
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    if handle is None or tokens is None:
        return None
    cache, positions = given.get("past_key_values"), given.get("position_ids")
    changed = None
    if positions is None and (handle.dial.now.factor is None or handle.attention is not None):
        positions = _positions(model, given.get("attention_mask"), tokens.shape[1])
        changed = None if positions is None else {"position_ids": positions}
    if isinstance(cache, Cache):
        _check(handle, cache, tokens.shape[1], positions)
    return changed


def _positions(model: Any, mask: Any, count: int) -> Tensor | None:
    """Position ids of a padded batch, for a text model that takes them. Models with images count in their own way."""
    plain_text = model.config.get_text_config(decoder=True) is model.config
    if not plain_text or "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    return padded_positions(mask, count)


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
