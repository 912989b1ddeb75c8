"""Ms-PoE: every head divides distances by a ratio of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longwave.attention.bands import Band, zero
from longwave.attention.engine import Scoring, attend
from longwave.attention.rows import Row, RowWise
from longwave.attention.spectrum import Turn
from longwave.schedule import tokens_at
from longwave.settings import setting

OUTLIER = 3.0  # a key is one if its weight is over so many times the mean weight


@dataclass(frozen=True)
class MsPoE(RowWise):
    """Head h sees a key at distance d as if it were at d/r_h.

    The ratios lie between `ratio_min` and `ratio_max`, evenly. The head whose attention stands out most has the least
    ratio. For this the last query of the first forward counts its outliers: keys with more than 3 times the mean
    weight, by content alone. Heads that share keys share a ratio, so that keys are turned once.

    It is meant for the window that a model was trained on. Beyond it reaches only to `ratio_min` times L.

    Source: arXiv 2403.04797. There keys have the ratio of the first head that shares them.
    """

    ratio_min: float = setting(1.2, "What distances are divided by in the head with most outliers.", least=1)
    ratio_max: float = setting(1.8, "No head divides distances by more.", least=1)
    share: str = setting(
        "key", "Whether heads that share keys share a ratio, or each has its own.", choices=("key", "head")
    )
    order: str = setting(
        "outliers", "Heads by their outliers; official has the inverse of that order.", choices=("outliers", "official")
    )

    name: ClassVar[str] = "ms-poe"
    summary: ClassVar[str] = "every head divides distances by a ratio of its own"
    source: ClassVar[str] = "arXiv 2403.04797"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio_max < self.ratio_min:
            raise ValueError(
                f"ratio max of {self.name} must be at least ratio min {self.ratio_min:g}, got {self.ratio_max:g}."
            )

    @property
    def prefill_chunk(self) -> int:
        """The whole prompt has one order of heads."""
        return tokens_at(self.max_factor, self.original_length)

    def bands(self, t: float) -> tuple[Band, ...]:
        """Those of the head with the least ratio."""
        return (Band(zero, lambda p: p + 1, lambda p: p / self.ratio_min, lambda j: j / self.ratio_min),)

    def cropped(self, memory: Tensor | None, length: int) -> Tensor | None:
        return memory

    def attend(self, row: Row, memory: Tensor | None) -> tuple[Tensor, Any]:
        if memory is None:
            if row.start:
                raise ValueError(
                    f"{self.name} goes on only with a cache that it has filled. Pass the whole text with a new cache."
                )
            memory = self.ratios(row)
        k, v, group = row.k, row.v, row.q.shape[1] // row.k.shape[1]
        if self.share == "head":
            k, v, of_heads = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), memory
        else:
            of_heads = memory.repeat_interleave(group)
        keys = torch.arange(row.stop, device=k.device)
        scaling = torch.as_tensor(row.spectrum.scaling, dtype=memory.dtype) ** 2
        placed = row.placed(
            rotation(row, row.positions / of_heads[:, None], scaling), rotation(row, keys / memory[:, None])
        )
        return attend(row.q, k, v, [placed], Scoring(row.layout, row.scale)), memory

    def ratios(self, row: Row) -> Tensor:
        """The ratio of each head, [H], or of each key head, [H_kv]."""
        group, wide = row.q.shape[1] // row.k.shape[1], row.spectrum.theta.dtype
        q = row.q[0, :, -1].reshape(row.k.shape[1], group, -1).to(wide)
        weights = ((q @ row.k[0].to(wide).mT) * row.scale).softmax(-1)
        outliers = (weights > OUTLIER * weights.mean(-1, keepdim=True)).sum(-1)
        outliers = outliers.flatten() if self.share == "head" else outliers.sum(-1)
        order = outliers.sort(descending=True, stable=True).indices
        step = (self.ratio_max - self.ratio_min) / len(order)
        even = self.ratio_min + step * torch.arange(len(order), dtype=wide, device=q.device)
        return even[order] if self.order == "official" else torch.empty_like(even).scatter_(0, order, even)


def rotation(row: Row, places: Tensor, scaling: float | Tensor = 1.0) -> Turn:
    """cos and sin at places of every head, [heads, n]: [1, heads, n, R/2]."""
    phase = places[..., None] * row.spectrum.theta
    return (phase.cos() * scaling)[None], (phase.sin() * scaling)[None]
