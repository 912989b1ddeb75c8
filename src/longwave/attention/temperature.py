"""How peaked the softmax is: log-n, a scale on every query by its position.

The query at position p becomes q_p · max(1, ln(p + 1) / ln L)^exponent. Attention over n keys then keeps its entropy
as n grows beyond L. YaRN calls a constant form of this scale a temperature. Below L the scale is exactly 1. Queries and
keys share cos and sin, so the scale cannot be part of the rotary module.

Source: github.com/DAMO-NLP-SG/CLEX (`log_scale`), which has one scalar over the whole key length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longwave.attention.heads import HeadScalars
from longwave.attention.shards import Shards


class LogN:
    """max(1, ln(p + 1)/ln L)^exponent for the query at position p.

    Arguments:
        original_length: L in tokens.
        exponent: a number > 0; with `heads` the one that they started from, which may be 0.
        by_keys: count the keys before the query instead of p, see `count_keys`.
        heads: learned exponents, one for each head of a layer.

    Raises:
        ValueError: for another exponent.
    """

    def __init__(
        self, original_length: int, exponent: float, by_keys: bool = False, heads: HeadScalars | None = None
    ) -> None:
        if not (math.isfinite(exponent) and (exponent > 0 or (heads is not None and exponent == 0))):
            raise ValueError(f"log_n must be True, False or an exponent >= 0, got {exponent}.")
        self.original_length, self.exponent, self.by_keys, self.heads = original_length, exponent, by_keys, heads
        self._last: tuple[Tensor, int, Tensor] | None = None  # position ids, their version, what is kept of them

    def __reduce__(self) -> tuple[Any, ...]:
        return LogN, (self.original_length, self.exponent, self.by_keys, self.heads)

    def positions(
        self, query: Tensor, key: Tensor, position_ids: Tensor | None, places: Tensor | None = None
    ) -> Tensor | None:
        """p of each query, as `scaled` takes it; None if all scales are 1 or the positions are unknown.

        Arguments:
            places: of each query among the keys of its document, where rows hold several documents.
        """
        if not self.by_keys:
            return position_ids
        if places is not None:
            return places
        seen = key.shape[-2]  # at most L: training need not multiply by 1
        if seen <= self.original_length and self.heads is None:
            return None
        return torch.arange(seen - query.shape[-2], seen, device=query.device)[None]

    def scaled(self, query: Tensor, position_ids: Tensor, layer: int, shards: Shards | None = None) -> Tensor:
        """The scaled queries of a layer.

        Arguments:
            query: [batch, heads, n, head_dim].
            position_ids: [batch or 1, n], or [axes, batch, n].
            layer: its number.
            shards: which of the layer's heads these are, where processes share the rows.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        scale = self._kept_of(position_ids)
        if self.heads is not None:
            exponents = self.heads.log_n_of(layer)
            scale = ((exponents if shards is None else shards.heads(exponents))[:, None, None] * scale).exp()
        return (query.to(wide) * scale).to(query.dtype)

    def _kept_of(self, position_ids: Tensor) -> Tensor:
        """What all layers share, [batch, 1, n, 1], computed once, because all layers get the same tensor.

        It is the scale; or, where each head has an exponent, ln max(1, ln(p + 1)/ln L).
        """
        # The version of a tensor shows that a decode loop has counted it up in place. Tensors of inference mode have
        # no version, and a scale made in inference mode could not serve training.
        kept = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or position_ids.is_inference())
        if kept and self._last is not None:
            known, version, scale = self._last
            if known is position_ids and version == position_ids._version:
                return scale
        positions = position_ids[0] if position_ids.ndim == 3 else position_ids
        scale = log_n_scale(positions, self.original_length, 1.0 if self.heads is not None else self.exponent)
        scale = (scale if self.heads is None else scale.log())[:, None, :, None]
        if kept:
            self._last = position_ids, position_ids._version, scale
        return scale


class Constant:
    """The same factor on every query of a head: log-n of each head as an export has it, in its weights.

    Arguments:
        factors: layer -> the factor of each head.
    """

    by_keys, exponent = False, 0.0

    def __init__(self, factors: Mapping[int, Sequence[float]]) -> None:
        self.factors = factors
        self.heads: HeadScalars | None = None

    def positions(
        self, query: Tensor, key: Tensor, position_ids: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """No position is read."""
        return query.new_empty(0)

    def scaled(self, query: Tensor, position_ids: Tensor, layer: int, shards: Shards | None = None) -> Tensor:
        """The scaled queries of a layer, [batch, heads, n, head_dim]."""
        wide = torch.promote_types(query.dtype, torch.float32)
        factor = torch.tensor(self.factors[layer], dtype=wide, device=query.device)
        return (query.to(wide) * factor[:, None, None]).to(query.dtype)


def log_n_scale(position_ids: Tensor, original_length: int, exponent: float) -> Tensor:
    """max(1, ln(p + 1)/ln L)^exponent in float32, exactly 1 for p < L; shape of `position_ids`."""
    ratio = (position_ids.float() + 1).log() / math.log(original_length)
    return torch.where(position_ids < original_length, 1.0, ratio.clamp(min=1.0) ** exponent)
