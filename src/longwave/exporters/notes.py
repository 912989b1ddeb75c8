"""Notes on a model that several targets share, and reasons to refuse one."""

from __future__ import annotations

import re

from longwave.exporters.base import Unsupported
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")  # how tensors of transformers name their layer

# |Δ log-probability| that the rounding of a type explains, with room: random and small trained models differed by
# 1e-3 in float32, by 3e-2 in float16 and by 6e-2 in bfloat16.
ROUNDING = {"float32": 1e-2, "float16": 0.3, "bfloat16": 1.0}


def stored_type(source: Source) -> str:
    """The type of the weights by config.json: `float32`, `bfloat16`, ..."""
    return str(source.text_config.dtype or "float32").removeprefix("torch.")


def quantization_of(source: Source) -> str:
    """Name of the method by which config.json quantizes the model; empty if it does not."""
    found = source.config.get("quantization_config")
    return str(found.get("quant_method", "of an unnamed method")) if isinstance(found, dict) else ""


def refuse_quantized(source: Source, target: str) -> None:
    """Raises `Unsupported` for weights that only the quantization of config.json can read."""
    if source.contents.quantized:
        raise Unsupported(
            f"the weights of {source.model} are quantized ({quantization_of(source)}), and {target} export needs plain "
            "ones. Export the model that they were made from."
        )


def partial_heads(source: Source, snapshot: Snapshot) -> list[str]:
    """A note for a model that rotates a part of each head: a scaling of cos and sin does not reach the rest."""
    if snapshot.attention_scaling == 1 or source.rotates_whole_heads:
        return []
    return [
        f"{source.model_type} rotates a part of each head. Only that part of a logit takes the attention scaling of "
        f"{snapshot.attention_scaling:.4f}. --log-n drop exports without log-n."
    ]


def weight_notes(source: Source, *, kept: bool) -> list[str]:
    """Notes on where the weights are not as config.json says.

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
    return notes + _unused(source, kept=kept)


def _unused(source: Source, *, kept: bool) -> list[str]:
    unused = source.contents.unused
    if not unused:
        return []
    one = len(unused) == 1
    what, which = ("one tensor", unused[0]) if one else (f"{len(unused)} tensors", f"the first is {unused[0]}")
    it = "it" if one else "them"
    notes = [
        f"The weights hold {what} that the model of config.json does not have ({which}). The export "
        + (f"keeps {it}." if kept else f"leaves {it} out.")
    ]
    numbers = [int(found) for name in unused for found in LAYER.findall(name)]
    depth = getattr(source.text_config, "num_hidden_layers", None)
    if depth is not None and max(numbers, default=-1) >= depth:
        notes.append(
            f"config.json has num_hidden_layers {depth}, and the weights hold {max(numbers) + 1} layers. The model "
            f"runs the first {depth}, as in transformers."
        )
    return notes
