"""Which tokens are key ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which tokens are key.

    A key token is likely with the whole text before it, ln p_long > beta, and much less so with a short context,
    ln p_long - ln p_short > alpha.

    Arguments:
        trunc_len: tokens of the short context. The first `trunc_len` tokens of a text are never key: they have no
            longer context.
        sliding_window: tokens from one start of a short context to the next. The tokens in between share a start, so a
            short context has up to `sliding_window` - 1 tokens more.
        alpha, beta: in nats.
    """

    trunc_len: int = 4096
    sliding_window: int = 1024
    alpha: float = 2.0
    beta: float = -2.0

    def check(self, lengths: Sequence[int]) -> None:
        """Refuse lengths without a token to choose from, and numbers that the library longppl cannot take."""
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
        """The number of tokens that the evaluator reads for a text. Roughly: it has a tokenizer of its own."""
        steps = range(0, length - self.trunc_len, self.sliding_window)
        return length + sum(min(self.trunc_len + self.sliding_window, length - start) for start in steps)
