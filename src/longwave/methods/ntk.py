"""NTK-aware scaling: a larger base, so that fast pairs stay and slow pairs interpolate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longwave.methods.scaling import RopeType, Scaling, factor_in
from longwave.rope import Rope
from longwave.schedule import Continuous
from longwave.trajectory import Trajectory


class NTK(Trajectory):
    """z_i(t) = z_i(1) - 2i/(d-2) ln α(t), with α(t) = slope·t - (slope - 1).

    The fastest pair keeps its frequency; the slowest is divided by α. slope 1 is α = t; slope 2 is
    α = 2t - 1, the prior of CLEX and what transformers' `rope_type: dynamic` does with `factor: 2`.
    Its slowest pair turns slower than under interpolation by t: less sharp, safer at the far end.

    Arguments:
        slope: dα/dt, at least 1 (default 2).

    Source: bloc97 and emozilla (public notes, 2023); YaRN, section 3 (arXiv 2309.00071).
    """

    name = "ntk"
    exponent: Tensor

    def __init__(self, rope: Rope, max_factor: float, slope: float = 2.0) -> None:
        super().__init__(rope, max_factor)
        if not (math.isfinite(slope) and slope >= 1):
            raise ValueError(f"ntk slope must be a number >= 1, got {slope}. 1 is α = t, 2 is α = 2t - 1.")
        self.slope = float(slope)
        pairs = rope.rotary_dim // 2
        # On the CPU as the rope is, whatever the default device; the model's device follows on attaching.
        index = torch.arange(pairs, dtype=torch.float64, device="cpu")
        self.register_buffer("exponent", index / max(pairs - 1, 1), persistent=False)

    def options(self) -> dict[str, Any]:
        return {"slope": self.slope}

    def _alpha(self, t: float | Tensor) -> Tensor:
        return self.slope * self.as_factor(t) - (self.slope - 1)

    def log_freq(self, t: float | Tensor) -> Tensor:
        return self.log_freq_1 - self.exponent * self._alpha(t).log()

    def rate(self, t: float | Tensor) -> Tensor:
        return -self.exponent * self.slope / self._alpha(t)


def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, max_position_embeddings: int) -> Scaling:
    """α = factor·n/L - (factor - 1) is NTK with that slope; transformers sets no end, our t stays at the factor."""
    factor, length = factor_in(parameters), max_position_embeddings
    if not length:
        raise ValueError("the config has no max_position_embeddings.")
    return Scaling(factor, length, length, Continuous(), {"slope": factor})


ROPE_TYPE = RopeType("dynamic", from_rope_parameters)
