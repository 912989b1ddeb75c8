"""How peaked the softmax is: log-n, a scale on every query by its position.

The query at position p becomes q_p · max(1, ln(p + 1) / ln L)^exponent. Attention over n keys then keeps its entropy
as n grows beyond L. YaRN calls a constant form of this scale a temperature. Below L the scale is exactly 1. Queries and
keys share cos and sin, so the scale cannot be part of the rotary module.

Source: github.com/DAMO-NLP-SG/CLEX (`log_scale`), which has one scalar over the whole key length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class LogN:
    """max(1, ln(p + 1)/ln L)^exponent for the query at position p.

    Arguments:
        original_length: L in tokens.
        exponent: a number > 0.
        by_keys: count the keys before the query instead of p, see `count_keys`.

    Raises:
        ValueError: for another exponent.
    """

    def __init__(self, original_length: int, exponent: float, by_keys: bool = False) -> None:
        if not (math.isfinite(exponent) and exponent > 0):
            raise ValueError(f"log_n must be True, False or an exponent >= 0, got {exponent}.")
        self.original_length, self.exponent, self.by_keys = original_length, exponent, by_keys
        self._last: tuple[Tensor, int, Tensor] | None = None  # position ids, their version, their scale

    def __reduce__(self) -> tuple[Any, ...]:
        return LogN, (self.original_length, self.exponent, self.by_keys)

    def positions(self, query: Tensor, key: Tensor, position_ids: Tensor | None) -> Tensor | None:
        """p of each query, as `scaled` takes it; None if all scales are 1 or the positions are unknown."""
        if not self.by_keys:
            return position_ids
        seen = key.shape[-2]  # at most L: training need not multiply by 1
        if seen <= self.original_length:
            return None
        return torch.arange(seen - query.shape[-2], seen, device=query.device)[None]

    def scaled(self, query: Tensor, position_ids: Tensor) -> Tensor:
        """query: [batch, heads, n, head_dim]; position_ids: [batch or 1, n], or [axes, batch, n]."""
        wide = torch.promote_types(query.dtype, torch.float32)
        return (query.to(wide) * self._scale_of(position_ids)).to(query.dtype)

    def _scale_of(self, position_ids: Tensor) -> Tensor:
        """The scale as [batch, 1, n, 1], computed once for all layers, because all layers get the same tensor."""
        # The version of a tensor shows that a decode loop has counted it up in place. Tensors of inference mode have
        # no version, and a scale made in inference mode could not serve training.
        kept = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or position_ids.is_inference())
        if kept and self._last is not None:
            known, version, scale = self._last
            if known is position_ids and version == position_ids._version:
                return scale
        positions = position_ids[0] if position_ids.ndim == 3 else position_ids
        scale = log_n_scale(positions, self.original_length, self.exponent)[:, None, :, None]
        if kept:
            self._last = position_ids, position_ids._version, scale
        return scale


def log_n_scale(position_ids: Tensor, original_length: int, exponent: float) -> Tensor:
    """max(1, ln(p + 1)/ln L)^exponent in float32, exactly 1 for p < L; shape of `position_ids`."""
    ratio = (position_ids.float() + 1).log() / math.log(original_length)
    return torch.where(position_ids < original_length, 1.0, ratio.clamp(min=1.0) ** exponent)
