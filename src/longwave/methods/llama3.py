"""The scaling of Llama 3.1: interpolation by parts, with a ramp in the frequency itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longwave.methods.by_parts import ByParts
from longwave.methods.scaling import RopeType, Scaling, factor_in, original_length_in
from longwave.rope import Rope
from longwave.rules import POSITIVE
from longwave.schedule import Static


class Llama3(ByParts):
    """θ_i(t) = θ_i(1)·(1 - r_i + r_i/t), r_i = 1 - clip((ν_i - low)/(high - low), 0, 1).

    ν_i = L/wavelength_i counts the rotations of pair i within L.

    Arguments:
        low_freq_factor: rotations below which a pair is fully interpolated (default 1).
        high_freq_factor: rotations above which a pair is kept (default 4).

    Source: Llama 3.1 (arXiv 2407.21783); `rope_type: llama3` in transformers.
    """

    name = "llama3"

    def __init__(
        self, rope: Rope, max_factor: float, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0
    ) -> None:
        if not high_freq_factor > low_freq_factor > 0:
            raise ValueError(
                f"llama3 needs high_freq_factor > low_freq_factor > 0, got {high_freq_factor} and {low_freq_factor}."
            )
        self.low_freq_factor, self.high_freq_factor = float(low_freq_factor), float(high_freq_factor)
        rotations = rope.original_length / rope.wavelength
        keep = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
        super().__init__(rope, max_factor, 1 - keep)

    def options(self) -> dict[str, Any]:
        return {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}


KEYS = {"low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE}


def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, max_position_embeddings: int) -> Scaling:
    factor, original = factor_in(parameters), original_length_in(parameters)
    options = {name: parameters[name] for name in KEYS}
    if None in options.values():
        raise ValueError("its low_freq_factor or high_freq_factor is null.")
    return Scaling(factor, original, max_position_embeddings, Static(factor), options, 1 / rope.powers)


ROPE_TYPE = RopeType("llama3", from_rope_parameters, KEYS, required=("factor", *KEYS))
