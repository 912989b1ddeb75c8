"""ReRoPE and Leaky ReRoPE: far keys at one distance, or at distances that are divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longwave.attention.bands import Band, NearAndFar, always, near, zero
from longwave.settings import setting


@dataclass(frozen=True)
class ReRoPE(NearAndFar):
    """Keys w and more tokens away are all scored at distance w.

    Source: github.com/bojone/rerope.
    """

    name: ClassVar[str] = "rerope"
    summary: ClassVar[str] = "all far keys at one distance, w"
    source: ClassVar[str] = "github.com/bojone/rerope"

    def bands(self, t: float) -> tuple[Band, ...]:
        return near(self.w), self.far(query=always(self.w), key=zero)


@dataclass(frozen=True)
class LeakyReRoPE(NearAndFar):
    """A key at distance d >= w is scored at w + (d - w)/f.

    f is `divisor`, or as small as the reach allows: f = max(1, (n - w)/(ρL - w)).

    Source: github.com/bojone/rerope.
    """

    divisor: float | None = setting(
        None, "What distances beyond the window are divided by. Default: as little as the reach allows.", least=1
    )

    name: ClassVar[str] = "leaky-rerope"
    summary: ClassVar[str] = "distances beyond a window are divided"
    source: ClassVar[str] = "github.com/bojone/rerope"

    def bands(self, t: float) -> tuple[Band, ...]:
        (f,) = self.state(t)
        return near(self.w), self.far(query=lambda p: self.w + (p - self.w) / f, key=lambda j: j / f)

    def state(self, t: float) -> tuple[float, ...]:
        return (self.compression(t) if self.divisor is None else self.divisor,)
