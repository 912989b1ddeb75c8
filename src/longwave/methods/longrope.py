"""LongRoPE: searched factors for each pair, supplied from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longwave.rope import Rope
from longwave.trajectory import Trajectory


class LongRoPE(Trajectory):
    """z(t) = z(1) - s ln(long/short), s = ln t / ln t_max: from the short factors to the long ones.

    At t_max these are the frequencies that a `longrope` config has beyond L; between, they are
    interpolated in log-log. `rope` is the model's own, so its short factors are already in z(1).
    Attention scaling: sqrt(1 + ln t / ln L), or attention_factor^s. Under `Threshold` this is the published switch.

    Arguments:
        long_factor: λ_i at t_max, d/2 positive numbers. Required: they come from a search.
        short_factor: λ_i within L that z(1) already contains (default all 1).
        attention_factor: the attention scaling at t_max (default: by the paper's formula).

    Source: LongRoPE (arXiv 2402.13753); `rope_type: longrope` in transformers.
    """

    name = "longrope"
    log_ratio: Tensor

    def __init__(
        self,
        rope: Rope,
        max_factor: float,
        long_factor: Sequence[float] | None = None,
        short_factor: Sequence[float] | None = None,
        attention_factor: float | None = None,
    ) -> None:
        super().__init__(rope, max_factor)
        if long_factor is None:
            raise ValueError(
                "longrope needs long_factor, the searched factor of each frequency. "
                "Pass the one of a longrope config, or choose yarn, which needs none."
            )
        pairs = rope.rotary_dim // 2
        self.long_factor = [float(value) for value in long_factor]
        self.short_factor = [1.0] * pairs if short_factor is None else [float(value) for value in short_factor]
        for name, values in (("long_factor", self.long_factor), ("short_factor", self.short_factor)):
            if len(values) != pairs or min(values) <= 0:
                raise ValueError(f"longrope {name} must be {pairs} positive numbers, got {len(values)} values.")
        if max_factor <= 1:
            raise ValueError(f"longrope needs max_factor > 1 to interpolate towards, got {max_factor}.")
        if attention_factor is not None and not (math.isfinite(attention_factor) and attention_factor > 0):
            raise ValueError(f"longrope attention_factor must be a positive number, got {attention_factor}.")
        self.attention_factor = None if attention_factor is None else float(attention_factor)
        # On the CPU, as the rope is, whatever torch.set_default_device says.
        long, short = (
            torch.tensor(values, dtype=torch.float64, device="cpu") for values in (self.long_factor, self.short_factor)
        )
        self.register_buffer("log_ratio", (long / short).log(), persistent=False)

    def options(self) -> dict[str, Any]:
        return {
            "long_factor": self.long_factor,
            "short_factor": self.short_factor,
            "attention_factor": self.attention_factor,
        }

    def log_freq(self, t: float | Tensor) -> Tensor:
        return self.log_freq_1 - self.as_factor(t).log() / math.log(self.max_factor) * self.log_ratio

    def rate(self, t: float | Tensor) -> Tensor:
        return -self.log_ratio / (self.as_factor(t) * math.log(self.max_factor))

    def attention_scaling(self, t: float) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor ** (math.log(t) / math.log(self.max_factor)))
        return math.sqrt(1 + math.log(t) / math.log(self.rope.original_length))
