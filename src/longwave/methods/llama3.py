"""The scaling of Llama 3.1: interpolation by parts, with a ramp in the frequency itself."""

from __future__ import annotations

from typing import Any

from longwave.methods.by_parts import ByParts
from longwave.rope import Rope


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
