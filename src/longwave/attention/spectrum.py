"""The frequencies that bands turn queries and keys by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from longwave.attention.bands import Band

Turn = tuple[Tensor, Tensor]  # cos and sin, [B or 1, 1, n, R/2]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The frequencies of bands at one t.

    Arguments:
        own: θ(1) in rad/token, shape [R/2].
        theta: θ(t) of the trajectory.
        scaling: the trajectory's attention scaling m at t; logits of rotated dimensions grow by m².
        tables: cos and sin at whole places, by their type.
    """

    own: Tensor
    theta: Tensor
    scaling: float | Tensor = 1.0
    tables: dict[torch.dtype, Turn] = field(default_factory=dict, repr=False)

    def at(self, places: Tensor, dtype: torch.dtype) -> Turn:
        """cos and sin of θ(t) at whole places, int64 [n]: [n, R/2]. They are worked out once."""
        most = int(places.max()) + 1 if len(places) else 0
        if dtype not in self.tables or len(self.tables[dtype][0]) < most:
            count = 1 << max(8, (most - 1).bit_length())
            phase = torch.arange(count, device=places.device).to(self.theta.dtype)[:, None] * self.theta
            self.tables[dtype] = phase.cos().to(dtype), phase.sin().to(dtype)
        cos, sin = self.tables[dtype]
        return cos[places], sin[places]

    def between(self, first: int, stop: int, device: torch.device, dtype: torch.dtype) -> Turn:
        """`at` for the places first <= place < stop."""
        if dtype not in self.tables or len(self.tables[dtype][0]) < stop:
            self.at(torch.tensor([stop - 1], device=device), dtype)
        cos, sin = self.tables[dtype]
        return cos[first:stop], sin[first:stop]

    def of(self, band: Band) -> Tensor:
        return self.own if band.own else self.theta

    def phase(self, band: Band, places: Tensor) -> Tensor:
        """places·θ in radians, float64 where the device has it, [..., R/2]."""
        theta = self.of(band)
        return places.to(theta.dtype)[..., None] * theta
