"""Losses of windows: what `perplexity` returns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from longwave.evaluation.statistics import Z95, Interval, mean_nll


@dataclass(frozen=True)
class Stretch:
    """Loss of the tokens at places start <= p < end of all windows; a window starts at place 0.

    Arguments:
        start, end: places in tokens.
        nll: mean -ln p per scored token, in nats.
        tokens: how many were scored.
    """

    start: int
    end: int
    nll: float
    tokens: int


@dataclass(frozen=True)
class LengthLoss:
    """What was measured at one context length.

    Arguments:
        length: tokens of a window.
        factor: t the windows ran at, None for a model that is not extended.
        ends: exclusive end of each window in the token stream: the key for pairing results.
        nll: sum of -ln p over the scored tokens of each window, in nats.
        tokens: scored tokens of each window.
        by_position: the loss along the windows, empty where not asked for.
        as_prompt: windows were read as a prompt is, and the model's attention method decodes otherwise.
    """

    length: int
    factor: float | None
    ends: tuple[int, ...]
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    by_position: tuple[Stretch, ...] = ()
    as_prompt: bool = False

    @property
    def mean(self) -> float:
        """Mean -ln p per token, in nats."""
        return mean_nll(self.nll, self.tokens)[0]

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, windows being the sampling unit; NaN for a single window."""
        return mean_nll(self.nll, self.tokens)[1]

    @property
    def ppl(self) -> float:
        """exp(mean)."""
        return math.exp(self.mean)

    @property
    def interval(self) -> Interval:
        """95 % interval of the perplexity, exp(mean ± 1.96 se)."""
        mean, error = mean_nll(self.nll, self.tokens)
        return Interval(math.exp(mean), math.exp(mean - Z95 * error), math.exp(mean + Z95 * error))

    def to_json(self) -> dict[str, Any]:
        """One entry of `lengths` in a perplexity record, see docs/results-schema.md."""
        alone = len(self.nll) < 2  # no spread to speak of
        stretches = {"by_position": [asdict(stretch) for stretch in self.by_position]} if self.by_position else {}
        as_prompt = {"as_prompt": True} if self.as_prompt else {}
        return {
            "length": self.length,
            "factor": self.factor,
            "windows": len(self.nll),
            "mean_nll": self.mean,
            "standard_error": None if alone else self.standard_error,
            "ppl": self.ppl,
            "interval": None if alone else [self.interval.low, self.interval.high],
            "ends": list(self.ends),
            "nll": list(self.nll),
            "tokens": list(self.tokens),
            **stretches,
            **as_prompt,
        }


@dataclass(frozen=True)
class Perplexity:
    """Result of `perplexity`: one `LengthLoss` for each length asked for, in that order."""

    protocol: str
    original_length: int
    targets: int
    stride: int
    lengths: tuple[LengthLoss, ...]

    def __getitem__(self, length: int) -> LengthLoss:
        """The result at `length` tokens."""
        for entry in self.lengths:
            if entry.length == length:
                return entry
        measured = ", ".join(str(entry.length) for entry in self.lengths)
        raise KeyError(f"length {length} was not measured, only {measured}")
