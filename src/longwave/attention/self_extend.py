"""Self-Extend: far keys in groups that share a place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from longwave.attention.bands import Band, NearAndFar, near
from longwave.settings import setting


@dataclass(frozen=True)
class SelfExtend(NearAndFar):
    """A key w and more tokens away is scored at ⌊p/G⌋ + w - ⌊w/G⌋ - ⌊j/G⌋: G neighbours share a place.

    G is `group`, or the smallest number with w + (n - w)/G <= ρL, ρ = 2/3 as its authors advise.

    Source: arXiv 2401.01325.
    """

    reach: float = setting(2 / 3, "The largest distance that far keys may have, as a share of L.", least=0)
    group: int | None = setting(
        None, "How many far keys share a place. Default: as few as the reach allows.", least=1, metavar="TOKENS"
    )

    name: ClassVar[str] = "self-extend"
    summary: ClassVar[str] = "far keys in groups that share a place"
    source: ClassVar[str] = "arXiv 2401.01325"

    def bands(self, t: float) -> tuple[Band, ...]:
        w, (g,) = self.w, self.state(t)
        return near(w), self.far(query=lambda p: (p / g).floor() + w - w // g, key=lambda j: (j / g).floor())

    def state(self, t: float) -> tuple[float, ...]:
        return (math.ceil(self.compression(t) - 1e-9) if self.group is None else self.group,)
