"""Rows of cos and sin for every t behind those of SGLang's rotary modules; row numbers in the place of positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longwave.serving.profiles import Profiles
from longwave.serving.rows import Refused, append_rows
from longwave.serving.sglang.choice import start_of

KEPT = "longwave_rows"  # on a rotary module: what its rows were made from, and the first of each profile


def rotary_modules(model: nn.Module) -> list[Any]:
    """The rotary modules of SGLang in a model."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    return [module for module in model.modules() if isinstance(module, RotaryEmbedding)]


def extend_tables(model: nn.Module, profiles: Profiles) -> list[int]:
    """Append the rows of all profiles to the tables of a model; the first row of each.

    Raises:
        Refused: for a model whose rotary modules are others than the profiles were made for.
    """
    modules = rotary_modules(model)
    if not modules:
        raise Refused(f"{type(model).__name__} has no rotary module of SGLang's own. Serve it by another engine.")
    every = {tuple(_extend(module, profiles)) for module in modules}
    if len(every) > 1:
        raise Refused(f"{type(model).__name__} has rotary tables of several lengths, which is not supported.")
    return list(every.pop())


def _extend(module: Any, profiles: Profiles) -> list[int]:
    """Append to one table. Returns the first rows."""
    if (known := getattr(module, KEPT, None)) is not None and known[0] == profiles:
        return list(known[1])  # the layers of a model share rotary modules
    name = type(module).__name__
    module.cos_sin_cache, starts = append_rows(module.cos_sin_cache, module.base, profiles, 0, name)
    setattr(module, KEPT, (profiles, starts))
    return starts


def as_rows(forward: Any, requests: list[Any], starts: list[int]) -> Tensor:
    """The row of each token of a `ForwardBatch`: its position, behind the first row of its request.

    Raises:
        RuntimeError: for tokens of unknown requests. Some request would run at the t of another.
    """
    positions: Tensor = forward.positions
    own = torch.tensor([start_of(request, starts) for request in requests], dtype=positions.dtype)
    if not bool(own.any()):
        return positions
    if not (forward.forward_mode.is_decode() or forward.forward_mode.is_idle()):
        lengths = forward.extend_seq_lens_cpu
        counts = torch.tensor(lengths) if lengths is not None else forward.extend_seq_lens.cpu()
        own = own.repeat_interleave(counts.long())
    if own.shape != positions.shape:
        raise RuntimeError(f"{positions.numel()} tokens run, and the length factors of {own.numel()} are known")
    return positions + own.to(positions.device, non_blocking=True)
