"""Position Interpolation: every frequency divided by t."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from longwave.methods.scaling import RopeType, Scaling, factor_in, original_length_in
from longwave.rope import Rope
from longwave.schedule import Static
from longwave.trajectory import Trajectory


class Linear(Trajectory):
    """z(t) = z(1) - ln t: n positions squeezed into the L that the model knows.

    Source: Position Interpolation (arXiv 2306.15595); `rope_type: linear` in transformers.
    """

    name = "linear"

    def log_freq(self, t: float | Tensor) -> Tensor:
        return self.log_freq_1 - self.as_factor(t).log()

    def rate(self, t: float | Tensor) -> Tensor:
        return (-1 / self.as_factor(t)).expand(*self.log_freq(t).shape)


def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, max_position_embeddings: int) -> Scaling:
    factor, original = factor_in(parameters), original_length_in(parameters)
    return Scaling(factor, original, max_position_embeddings, Static(factor), inv_freq=1 / rope.powers)


ROPE_TYPE = RopeType("linear", from_rope_parameters)
