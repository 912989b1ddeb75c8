"""Models that vLLM runs by its Transformers backend (GPT-NeoX): their rotary modules are those of transformers.

Such a module computes cos and sin in every forward. The plugin lets it compute every row once, at each t, and then
looks the rows up. Rows have the same numbers as those of vLLM's own modules.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longwave.serving.profiles import Profile, Profiles
from longwave.serving.rows import CHECKED, Refused, is_row

TAKES = ("x", "position_ids")  # a rotary module with one set of frequencies


@cache
def looked_up_class(kind: Any) -> Any:
    """A rotary class of transformers that looks cos and sin up in `row_cos` and `row_sin`, [rows, d]."""

    class LookedUp(kind):  # type: ignore[misc]
        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            return self.row_cos[position_ids].to(x.dtype), self.row_sin[position_ids].to(x.dtype)

    LookedUp.__name__ = LookedUp.__qualname__ = f"LookedUp{kind.__name__}"
    return LookedUp


def rotary_modules(model: nn.Module) -> list[Any]:
    """The modules of transformers that compute cos and sin from frequencies."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "inv_freq", None), Tensor) and hasattr(module, "attention_scaling")
    ]


def extend_foreign(model: nn.Module, profiles: Profiles, padding: int) -> list[int]:
    """Let the rotary modules of a model look up the rows of all profiles; the first row of each.

    Raises:
        Refused: for a model without such modules, for modules that work in another way, and for log-n.
    """
    modules = rotary_modules(model)
    if not modules:
        raise Refused(f"{type(model).__name__} has no rotary module that is known. Serve it by another engine.")
    if profiles.scales_queries:
        raise Refused(
            f"{type(model).__name__} rotates by modules of transformers, where log-n does not reach the queries. "
            "Export a model without log-n."
        )
    if profiles.bands is not None:
        raise Refused(
            f"vLLM runs {type(model).__name__} by rotary modules of transformers, where bands do not reach its caches. "
            "Export under a scaling method alone, such as yarn."
        )
    weights = next(model.parameters())
    for module in modules:
        _look_up(module, profiles, padding, weights[:0])
    starts = [0]
    for profile in profiles.profiles[:-1]:
        starts.append(starts[-1] + profile.length + padding)
    return starts


@torch.no_grad()
def _look_up(module: Any, profiles: Profiles, padding: int, like: Tensor) -> None:
    kind: Any = type(module)
    name = kind.__name__
    parameters = tuple(inspect.signature(kind.forward).parameters)[1:]
    pairs = len(profiles.profiles[0].factors)
    if parameters != TAKES or module.inv_freq.numel() != pairs:
        raise Refused(
            f"{name} takes {', '.join(parameters)} and has {module.inv_freq.numel()} frequencies. The profiles are for "
            f"one set of {pairs}."
        )
    own = module.inv_freq, module.attention_scaling
    made = [_rows(module, profiles.profiles[0], padding, like)]  # those of t = 1: by the module as it is
    for profile in profiles.profiles[1:]:
        module.inv_freq = torch.tensor(profile.inv_freq, dtype=torch.float32, device=own[0].device)
        module.attention_scaling = profile.attention_scaling
        made.append(_rows(module, profile, padding, like))
    module.inv_freq, module.attention_scaling = own
    cos, sin = zip(*made, strict=True)
    module.register_buffer("row_cos", torch.cat(cos), persistent=False)
    module.register_buffer("row_sin", torch.cat(sin), persistent=False)
    module.__class__ = looked_up_class(kind)


def _rows(module: Any, profile: Profile, padding: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of all positions at one t, as the module computes them, in the type of the weights."""
    positions = torch.arange(profile.length + padding, device=like.device)
    found = module(like, positions[None])
    at, pairs = min(CHECKED, profile.length) - 1, len(profile.factors)
    if isinstance(found, tuple) and len(found) == 2 and found[0].shape[-1] in (pairs, 2 * pairs):
        cos, sin = (each[0] for each in found)
        halves, neighbours = (torch.cat((cos[at][own], sin[at][own])) for own in (slice(pairs), slice(0, None, 2)))
        if is_row(halves, at, profile) or (neighbours.numel() == 2 * pairs and is_row(neighbours, at, profile)):
            return cos, sin
    raise Refused(
        f"{type(module).__name__} rotates by other frequencies at t = {profile.factor:g} than the profile was made for."
    )
