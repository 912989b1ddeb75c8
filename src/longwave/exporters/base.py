"""What an export target has to provide."""

from __future__ import annotations

import re
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


LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")  # how tensors of transformers name their layer


def weight_notes(source: Source, *, kept: bool) -> list[str]:
    """What of the weights is otherwise than config.json says.

    Arguments:
        kept: whether the export copies tensors that the model does not have.
    """
    contents, notes = source.contents, []
    if contents.quantized:
        notes.append(
            f"The weights are quantized ({quantization_of(source)}): longwave did not check that none is missing."
        )
    elif quantization_of(source):
        notes.append(
            f"config.json asks for quantization ({quantization_of(source)}), and the weights are not quantized. Remove "
            "quantization_config from config.json unless the model is to be quantized when it is loaded."
        )
    for name in contents.untied:
        notes.append(
            f"config.json ties {name} to the embedding, and the weights hold a different one. The export uses "
            f"{name} of the weights, as transformers does."
        )
    if contents.unused:
        count, first = len(contents.unused), contents.unused[0]
        what, which = ("one tensor", first) if count == 1 else (f"{count} tensors", f"the first is {first}")
        fate = (
            ("keeps it" if count == 1 else "keeps them")
            if kept
            else ("leaves it out" if count == 1 else "leaves them out")
        )
        notes.append(
            f"The weights hold {what} that the model of config.json does not have ({which}). The export {fate}."
        )
        numbers = [int(found) for name in contents.unused for found in LAYER.findall(name)]
        depth = getattr(source.text_config, "num_hidden_layers", None)
        if depth is not None and max(numbers, default=-1) >= depth:
            notes.append(
                f"config.json has num_hidden_layers {depth}, and the weights hold {max(numbers) + 1} layers. The model "
                f"runs the first {depth}, as in transformers."
            )
    return notes


def refuse_quantized(source: Source, target: str) -> None:
    """Raises a `ValueError` for weights that only the quantization of config.json can read."""
    if source.contents.quantized:
        raise ValueError(
            f"the weights of {source.model} are quantized ({quantization_of(source)}), and {target} export needs plain "
            "ones. Export the model that they were made from, or use --to hf."
        )


def quantization_of(source: Source) -> str:
    """Name of the method by which config.json quantizes the model; empty if it does not."""
    found = source.config.get("quantization_config")
    return str(found.get("quant_method", "of an unnamed method")) if isinstance(found, dict) else ""


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
