"""Which tokens are key ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which tokens are key: -ln p is below -beta with the whole context, and more than alpha higher with a short one.

    Arguments:
        trunc_len: tokens of the short context; the first ones of a text, which have no longer one, are never key.
        sliding_window: tokens that share the start of a short context; the last of them sees that many more, less one.
        alpha, beta: in nats.
    """

    trunc_len: int = 4096
    sliding_window: int = 1024
    alpha: float = 2.0
    beta: float = -2.0

    def check(self, lengths: Sequence[int]) -> None:
        """Refuse what leaves no token to be chosen, or what the library cannot do."""
        if self.trunc_len < 1 or self.sliding_window < 2:
            raise ValueError(
                "trunc_len must be at least 1 and sliding_window at least 2, got "
                f"{self.trunc_len} and {self.sliding_window}."
            )
        if min(lengths) <= self.trunc_len:
            raise ValueError(
                f"LongPPL at length {min(lengths)} needs a trunc_len below that, got {self.trunc_len}. "
                "Lower it, or give the step longer lengths."
            )

    def cost(self, length: int) -> int:
        """Tokens read for a text by the evaluator, which has a tokenizer of its own: about that many."""
        steps = range(0, length - self.trunc_len, self.sliding_window)
        return length + sum(min(self.trunc_len + self.sliding_window, length - start) for start in steps)
