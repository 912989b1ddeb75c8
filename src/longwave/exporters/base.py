"""What an export target has to provide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from longwave.exporters.source import Source
from longwave.trajectory import Snapshot


class EngineMissing(ValueError):
    """The engine that runs a target is not installed; the message says how to install it."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine said to one prompt, greedily.

    Arguments:
        tokens: the new token ids.
        log_probs: natural log-probabilities over the vocabulary before each of them, [new, vocab], float32; NaN
            for the tokens that the engine did not show, None where it shows none at all.
    """

    tokens: list[int]
    log_probs: np.ndarray | None


def partial_heads(source: Source, snapshot: Snapshot) -> list[str]:
    """What a scaling of cos and sin means for a model that rotates heads in part."""
    if snapshot.attention_scaling == 1 or source.rotates_whole_heads:
        return []
    return [
        f"{source.model_type} rotates a part of each head, and only that part of a logit takes the attention scaling "
        f"of {snapshot.attention_scaling:.4f}; --log-n drop leaves log-n out of it."
    ]


# |Δ log-probability| that the rounding of a type explains, with room: random and small trained models differed by
# 1e-3 in float32, by 3e-2 in float16 and by 6e-2 in bfloat16.
ROUNDING = {"float32": 1e-2, "float16": 0.3, "bfloat16": 1.0}


def stored_type(source: Source) -> str:
    """Of the weights, by config.json: `float32`, `bfloat16`, ..."""
    return str(source.text_config.dtype or "float32").removeprefix("torch.")


class Exporter(Protocol):
    """One target: a file of its own with a class that has these members.

    Arguments:
        name: as in `--to`.
        summary: one line for `--help`.
        quantizations: what `--quantize` may be; the first is the default. Empty where weights stay as they are.
    """

    name: str
    summary: str
    quantizations: tuple[str, ...]

    def check(self, source: Source, snapshot: Snapshot) -> list[str]:
        """What the user should know, one sentence an entry; a `ValueError` if the target cannot express it.

        Runs before anything is written, and must be cheap.
        """
        ...

    def size(self, source: Source, quantize: str | None) -> int:
        """About how many bytes `write` writes: those of the weights."""
        ...

    def write(self, source: Source, snapshot: Snapshot, folder: Path, quantize: str | None) -> None:
        """Write all files but the model card into an empty folder, holding one tensor in memory at a time."""
        ...

    def tolerance(self, source: Source, quantize: str | None) -> float | None:
        """The largest |Δ log-probability| between `run` and longwave that is rounding; None for quantized weights."""
        ...

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        """The model card's section on how to serve it, in Markdown, with exact commands; `folder` is its name."""
        ...

    def engine(self) -> str:
        """Name and version of the engine that `run` uses; raises `EngineMissing`."""
        ...

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """Continue each prompt greedily by exactly `new_tokens` tokens (ends of text do not stop it) in the engine."""
        ...
