"""LongRoPE: searched factors for each pair, supplied from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longwave.methods.scaling import RECORD, RopeType, Scaling, original_length_in
from longwave.rope import Rope
from longwave.rules import FACTORS, POSITIVE, are_positive, is_length, is_positive
from longwave.schedule import Static, Threshold, tokens_at
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


def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, max_position_embeddings: int) -> Scaling:
    """The attention scaling holds within L, too: it stays the module's own, and ours is 1."""
    original, longest, long = original_length_in(parameters), max_position_embeddings, parameters["long_factor"]
    if long is None:
        raise ValueError("its long_factor is null.")
    factor = max(longest / original, float(parameters.get("factor") or 1.0))
    if factor == 1:  # no length is beyond L
        return Scaling(factor, original, longest, Threshold())
    # λ(1) as frequencies in float32 hold it: relative to these the long factors come out bit for bit.
    options = {"long_factor": long, "short_factor": rope.factors.tolist(), "attention_factor": 1.0}
    return Scaling(factor, original, longest, Threshold(), options)


def from_record(record: Mapping[str, Any], parameters: Mapping[str, Any], rope: Rope) -> Scaling:
    """An export of ours holds the factors of one t; its record says which, and what z(1) has.

    That is λ(1), where it is not 1, and an attention scaling of the model's own. The rest of the config's, per-query
    log-n as a constant included, belongs to t.
    """
    factor: Any = record.get("factor")
    original: Any = record.get("original_length")
    length, long = parameters.get("original_max_position_embeddings"), parameters["long_factor"]
    short = record.get("short_factor") or [1.0] * len(rope.powers)
    own = record.get("attention_scaling", 1.0)
    sound = all(map(is_positive, (factor, own))) and is_length(original) and are_positive(short) and bool(long)
    same = sound and is_length(length) and parameters["short_factor"] == long and len(short) == len(rope.powers)
    if not same or factor < 1 or length != record.get("length", tokens_at(factor, original)):
        raise ValueError(f"the key {RECORD!r} of the config does not go with its rope_parameters.")
    factor, original, own = float(factor), int(original), float(own)
    inv_freq = 1 / (torch.tensor(short, device="cpu") * rope.powers)
    held = Rope(inv_freq, original, rope.base).factors.tolist()
    attention = (parameters.get("attention_factor") or 1.0) / own
    scaling = Scaling(factor, original, length, Static(factor), {}, inv_freq, own)
    if scaling.max_factor > factor > 1:  # the method's factors are those at its end, which lies on the same line
        power = math.log(scaling.max_factor) / math.log(factor)
        long = [one * (other / one) ** power for one, other in zip(held, long, strict=True)]
        attention **= power
    options = {"long_factor": long, "short_factor": held, "attention_factor": attention}
    return replace(scaling, options=options)


ROPE_TYPE = RopeType(
    "longrope",
    from_rope_parameters,
    {
        "attention_factor": POSITIVE,
        "short_factor": FACTORS,
        "long_factor": FACTORS,
        "short_mscale": POSITIVE,
        "long_mscale": POSITIVE,
    },
    required=("short_factor", "long_factor"),
    from_record=from_record,
)
