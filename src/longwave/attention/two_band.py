"""Two bands: near keys as they are, far keys along the trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from longwave.attention.bands import Band, NearAndFar, near, same
from longwave.recipes import SHORT
from longwave.settings import setting


@dataclass(frozen=True)
class TwoBand(NearAndFar):
    """Keys up to w tokens away at their distance and θ(1); those beyond follow the trajectory from there on.

    The phase between the query at p and the key at j, d = p - j, is

        d·θ(1) for d < w,    w·θ(1) + (d - w)·θ(f) for d >= w,    f = max(1, (n - w)/(ρL - w)).

    Under Position Interpolation, θ(f) = θ(1)/f, no distance is over ρL. The logits of the n_far far keys get
    -β·ln(max(1, n_far/(L - w))): with β = 1 all far keys together weigh what they weighed at L.

    With ρ = 1, β = 0 and Position Interpolation this is Leaky ReRoPE. The mass term is ours.
    """

    reach: float = setting(0.75, "The largest distance that far keys may have, as a share of L.", least=0)
    mass: float = setting(1.0, "How much the logits of far keys are lowered as there are more of them.", least=0)

    name: ClassVar[str] = "two-band"
    summary: ClassVar[str] = "near keys as they are, far keys along the trajectory, with mass"
    source: ClassVar[str] = "longwave, after github.com/bojone/rerope"
    trajectory: ClassVar[str] = "linear"
    # A learned trajectory starts as two-band itself.
    below: ClassVar[Mapping[str, Any]] = MappingProxyType({"prior": "linear", "field": "smooth"})
    log_n: ClassVar[float] = 0.0
    recipe: ClassVar[Mapping[str, Any]] = SHORT

    def bands(self, t: float) -> tuple[Band, ...]:
        return near(self.w, own=True), self.far(query=lambda p: p - self.w, key=same, lead=self.w)

    def factor(self, t: float) -> float:
        """f."""
        return self.compression(t)

    def state(self, t: float) -> tuple[float, ...]:
        return (self.compression(t),)

    def span(self, t: float) -> float:
        """Under Position Interpolation."""
        n = t * self.original_length
        return max(min(self.w, n), self.w + (n - self.w) / self.compression(t))
