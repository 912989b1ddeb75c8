"""Which t a key/value cache was filled at, and whether a forward may go on with it.

Keys are cached after their rotation, and all but the first layer's came from hidden states under the t of that
moment. So a cache belongs to one t (for each row). It remembers which.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from longwave.rotary import ScaledRotary

FILLED_AT = "_longwave_factors"

Factors = tuple[float, ...]  # one for all rows, or one for each


def rotaries_of(model: nn.Module) -> list[ScaledRotary]:
    return [module for module in model.modules() if isinstance(module, ScaledRotary)]


def factors_of(factor: float | Tensor) -> Factors:
    """A t for all rows, or one for each where they differ."""
    found = tuple(factor.tolist()) if isinstance(factor, Tensor) else (float(factor),)
    return found if len(set(found)) > 1 else found[:1]


def adopt(model: nn.Module, cache: Cache, *, whole: bool) -> None:
    """Before a generation at the t in force: a cache of another t is emptied if the whole text is given.

    Raises:
        ValueError: if it is not.
    """
    (rotary, *_) = rotaries_of(model)
    assert rotary.factor is not None
    now = factors_of(rotary.factor)
    if int(cache.get_seq_length()):
        before = getattr(cache, FILLED_AT, None)
        if before is None or not _agree(rotary, before, now):
            if not whole:
                at = "by a forward of the model" if before is None else f"at t = {_shown(before)}"
                raise ValueError(
                    f"the cache was filled {at}, this call runs at t = {_shown(now)}. Pass the whole text as "
                    "input_ids (it is then computed again), or fix t from the first call on: "
                    'set_length(model, "fixed", factor).'
                )
            cache.reset()
    setattr(cache, FILLED_AT, now)


def before_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """For a forward outside of `generate`: its positions if it has padding; checks and marks the cache.

    Raises:
        ValueError: if the cache holds keys of another t than the one this forward runs at.
    """
    rotaries = rotaries_of(model)
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    if not rotaries or tokens is None:
        return None
    cache, positions = given.get("past_key_values"), given.get("position_ids")
    changed = None
    if positions is None and rotaries[0].factor is None:
        positions = _positions(model, given.get("attention_mask"), tokens.shape[1])
        changed = None if positions is None else {"position_ids": positions}
    if isinstance(cache, Cache):
        _check(rotaries[0], cache, tokens.shape[1], positions)
    return changed


def _positions(model: Any, mask: Any, count: int) -> Tensor | None:
    """Of the last `count` columns of a padded batch, padding left out; None without padding.

    Padding behind a row stays at its last position, in front of it at 0: neither makes a row longer.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    plain_text = model.config.get_text_config(decoder=True) is model.config  # others count images their own way
    if not plain_text or "position_ids" not in inspect.signature(model.forward).parameters or bool(mask.all()):
        return None
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]


def _check(rotary: ScaledRotary, cache: Cache, count: int, positions: Tensor | None) -> None:
    past = int(cache.get_seq_length())
    if positions is None:
        ends, starts = [past + count], [past]
    else:
        rows = positions.amax(0) if positions.ndim == 3 else positions
        ends, starts = (rows.amax(-1) + 1).tolist(), rows.amin(-1).tolist()
    now = factors_of(_at(rotary, ends) if rotary.factor is None else rotary.factor)
    if past:
        before = getattr(cache, FILLED_AT, None)
        if before is None:  # a cache that a forward made for itself
            before = factors_of(_at(rotary, starts)) if rotary.factor is None else now
        if not _agree(rotary, before, now):
            raise ValueError(
                f"the cache was filled at t = {_shown(before)}, but {max(ends)} tokens run at t = {_shown(now)}. "
                'Use model.generate, or call set_length(model, "fixed", factor) before the cache is filled.'
            )
    setattr(cache, FILLED_AT, now)


def _at(rotary: ScaledRotary, lengths: Sequence[int]) -> Tensor:
    return torch.tensor([rotary.factor_for(max(length, 1)) for length in lengths], dtype=torch.float64)


def _agree(rotary: ScaledRotary, before: Factors, now: Factors) -> bool:
    """Whether keys rotated at one serve at the other: equal t, or a trajectory that does not move between them."""
    count = max(len(before), len(now))
    if {len(before), len(now)} - {1, count}:
        return False
    pairs = {(a, b) for a, b in zip(before * (count // len(before)), now * (count // len(now)), strict=True) if a != b}
    return all(rotary.same_frequencies(a, b) for a, b in pairs)


def _shown(factors: Factors) -> str:
    return ", ".join(f"{factor:.6g}" for factor in factors)
