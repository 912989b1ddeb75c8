"""STRING: far keys at shifted distances, which were trained more often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from longwave.attention.bands import Attention, Band, far, near, same
from longwave.settings import setting


@dataclass(frozen=True)
class String(Attention):
    """A key S and more tokens away is scored at d - S + W: small distances, of which training saw most, serve twice.

    It is meant for the window that a model was trained on. Beyond it reaches only to L + S - W tokens.

    Source: arXiv 2410.18745.
    """

    shift: int | None = setting(
        None, "Keys so many tokens away and more are brought nearer, S. Default: L/3.", least=1, metavar="TOKENS"
    )
    local: int | None = setting(
        None,
        "The distance of the nearest of those keys, W. Default: L/1024, but at least 16, or L/32 where L is short.",
        least=0,
        metavar="TOKENS",
    )

    name: ClassVar[str] = "string"
    summary: ClassVar[str] = "far keys at the smaller distances that training saw more often"
    source: ClassVar[str] = "arXiv 2410.18745"
    log_n: ClassVar[float] = 0.0
    scaling: ClassVar[float] = 1 + 0.1 * math.log(2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._local >= self._shift:
            raise ValueError(f"local of string must be less than shift {self._shift}, got {self._local}.")

    @property
    def _shift(self) -> int:
        return max(1, self.original_length // 3) if self.shift is None else self.shift

    @property
    def _local(self) -> int:
        default = max(self.original_length // 1024, min(16, self.original_length // 32))
        return default if self.local is None else self.local

    def bands(self, t: float) -> tuple[Band, ...]:
        nearer = self._shift - self._local
        return near(self._shift), far(self._shift, query=lambda p: p - nearer, key=same)
