"""Whether hidden things are found: what `passkey` and `needle` return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longwave.evaluation.statistics import Interval, wilson

MOST_KEYS = 10  # in one prompt: so many names there are of each kind
BEFORE = {"keys": 1}  # of records that say nothing of it


def in_words(settings: Mapping[str, Any]) -> str:
    """How many keys a prompt has, where it has several."""
    keys = {**BEFORE, **settings}["keys"]
    return f"{keys} keys in each prompt" if keys > 1 else ""


@dataclass(frozen=True)
class LengthRetrieval:
    """What was measured at one length.

    Arguments:
        length: tokens of prompt and answer.
        factor: t that the prompts ran at, None for a model that is not extended.
        depths: for each trial, the depth that was asked for: 0 is the start of the filler, 1 its end.
        correct: for each trial, whether the key was found.
        places: for each trial, the depth that the needle has. A needle between two sentences cannot have every depth.
        decoded: whether the tokens of the answer were read one by one from the cache, and not with the prompt.
    """

    length: int
    factor: float | None
    depths: tuple[float, ...]
    correct: tuple[bool, ...]
    places: tuple[float, ...] = ()
    decoded: bool = False

    @property
    def rate(self) -> Interval:
        """Share of keys retrieved, with its 95 % Wilson interval."""
        return wilson(sum(self.correct), len(self.correct))

    def by_depth(self) -> dict[float, Interval]:
        """The same for each depth, shallowest first."""
        found: dict[float, list[bool]] = {}
        for depth, correct in sorted(zip(self.depths, self.correct, strict=True)):
            found.setdefault(depth, []).append(correct)
        return {depth: wilson(sum(hits), len(hits)) for depth, hits in found.items()}

    def to_json(self) -> dict[str, Any]:
        """One entry of `lengths` in a passkey or needle record, see docs/results-schema.md."""
        return {
            "length": self.length,
            "factor": self.factor,
            "trials": len(self.correct),
            "rate": self.rate.value,
            "interval": [self.rate.low, self.rate.high],
            "by_depth": [
                {"depth": depth, "rate": rate.value, "interval": [rate.low, rate.high]}
                for depth, rate in self.by_depth().items()
            ],
            "depths": list(self.depths),
            "correct": list(self.correct),
            "places": list(self.places),
            "decoded": self.decoded,
        }


@dataclass(frozen=True)
class Retrieval:
    """Result of `passkey` and `needle`: one `LengthRetrieval` for each length asked for, in that order."""

    original_length: int
    lengths: tuple[LengthRetrieval, ...]
