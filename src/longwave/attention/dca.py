"""Dual Chunk Attention: places that start anew in every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from longwave.attention.bands import Attention, Band, always, zero
from longwave.settings import setting


@dataclass(frozen=True)
class DualChunkAttention(Attention):
    """Keys of the query's own chunk at their distance, those of the previous chunk up to c, older ones at about c.

    Chunks have s = c - l tokens. The query at p and the key at j are scored at

        own chunk       p mod s                 j mod s
        previous chunk  min(p mod s + s, c)     j mod s
        older chunks    min(2s - 1, c)          j mod s

    Source: arXiv 2402.17463.
    """

    reach: float = setting(0.75, "The largest distance, c, as a share of L.", least=0)
    local: int | None = setting(
        None, "How many keys before the chunk keep their true distance, l. Default: L/8.", least=0, metavar="TOKENS"
    )
    mass: float = setting(0.0, "How much the logits of older chunks are lowered as there are more of them.", least=0)

    name: ClassVar[str] = "dca"
    summary: ClassVar[str] = "places start anew in every chunk"
    source: ClassVar[str] = "arXiv 2402.17463"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s < 1:
            raise ValueError(f"local of dca must be less than its reach of {self.c} tokens, got {self.c - self.s}.")

    @property
    def c(self) -> int:
        """The largest distance in tokens."""
        return round(self.reach * self.original_length)

    @property
    def s(self) -> int:
        """The length of a chunk in tokens."""
        return self.c - (self.original_length // 8 if self.local is None else self.local)

    def bands(self, t: float) -> tuple[Band, ...]:
        c, s = self.c, self.s

        def within(p: torch.Tensor) -> torch.Tensor:
            return p.remainder(s)

        def start(p: torch.Tensor) -> torch.Tensor:
            return p - p.remainder(s)

        own = Band(start, lambda p: p + 1, within, within)
        previous = Band(lambda p: start(p) - s, start, lambda p: (within(p) + s).clamp(max=c), within)
        older = Band(
            zero, lambda p: start(p) - s, always(min(2 * s - 1, c)), within, room=max(1, self.original_length - s)
        )
        return own, previous, older
