"""StreamingLLM and LM-Infinite: the first keys and the last ones, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longwave.attention.bands import Attention, Band, Place, always, near, same, zero
from longwave.settings import setting


def sinks(count: int, window: int, *, query: Place, key: Place) -> Band:
    """The first `count` keys that `near(window)` does not have."""
    return Band(zero, lambda p: (p - window + 1).clamp(max=count), query, key)


@dataclass(frozen=True)
class StreamingLLM(Attention):
    """The last w keys at their distance, and a first keys (the sinks) at distances that end at a + w - 1.

    What lies between is not seen. A cache needs a + w keys, however long the text.

    Source: arXiv 2309.17453.
    """

    sinks: int = setting(4, "How many of the first keys are always seen.", least=0, metavar="TOKENS")
    window: int | None = setting(
        None, "How many of the last keys are seen. Default: L less the sinks.", least=1, metavar="TOKENS"
    )

    name: ClassVar[str] = "streaming-llm"
    summary: ClassVar[str] = "the first keys and the last ones, no others"
    source: ClassVar[str] = "arXiv 2309.17453"
    changes: ClassVar[str] = "visible keys"
    cost: ClassVar[str] = "constant for each token"
    log_n: ClassVar[float] = 0.0

    @property
    def w(self) -> int:
        """The window in tokens."""
        return max(1, self.original_length - self.sinks) if self.window is None else self.window

    @property
    def bounded(self) -> tuple[int, int]:
        return self.sinks, self.w

    @property
    def like_plain(self) -> bool:
        return self.sinks + self.w >= self.original_length

    def bands(self, t: float) -> tuple[Band, ...]:
        a, w = self.sinks, self.w
        return near(w), sinks(a, w, query=lambda p: p.clamp(max=a + w - 1), key=same)


@dataclass(frozen=True)
class LMInfinite(Attention):
    """The last w keys at their distance, and a first keys, all at one distance.

    Source: arXiv 2308.16137.
    """

    sinks: int = setting(10, "How many of the first keys are always seen.", least=0, metavar="TOKENS")
    window: int | None = setting(None, "How many of the last keys are seen. Default: L.", least=1, metavar="TOKENS")
    distance: int | None = setting(
        None, "The distance of the first keys. Default: the window.", least=0, metavar="TOKENS"
    )

    name: ClassVar[str] = "lm-infinite"
    summary: ClassVar[str] = "the first keys, at one distance, and the last ones"
    source: ClassVar[str] = "arXiv 2308.16137"
    changes: ClassVar[str] = "visible keys"
    cost: ClassVar[str] = "constant for each token"
    log_n: ClassVar[float] = 0.0

    @property
    def w(self) -> int:
        """The window in tokens."""
        return self.original_length if self.window is None else self.window

    @property
    def bounded(self) -> tuple[int, int]:
        return self.sinks, self.w

    @property
    def like_plain(self) -> bool:
        return self.w >= self.original_length

    def bands(self, t: float) -> tuple[Band, ...]:
        d = self.w if self.distance is None else self.distance
        return near(self.w), sinks(self.sinks, self.w, query=always(d), key=zero)

    @property
    def stored(self) -> int:
        return 0
