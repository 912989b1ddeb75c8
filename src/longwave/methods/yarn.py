"""YaRN: interpolation by parts, with a temperature on the attention logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from longwave.methods.by_parts import ByParts
from longwave.methods.scaling import RopeType, Scaling, original_length_in
from longwave.rope import Rope
from longwave.rules import ANY, NOT_NEGATIVE, POSITIVE, SWITCH
from longwave.schedule import Static


class YaRN(ByParts):
    """θ_i(t) = θ_i(1)·(1 - r_i + r_i/t), attention scaling 0.1 ln t + 1.

    The ramp r is linear in the pair's index i, from the pair that turns β_fast times within L
    (r = 0, kept) to the one that turns β_slow times (r = 1, divided by t):
    i(β) = d ln(L/(2πβ)) / (2 ln b).

    Arguments:
        beta_fast: rotations within L above which a pair is kept (default 32).
        beta_slow: rotations within L below which a pair is fully interpolated (default 1).
        truncate: round the ramp's ends outwards to whole pairs, as transformers does (default True).
        temperature: the 0.1 of the attention scaling; 0 switches it off.

    Source: YaRN (arXiv 2309.00071); `rope_type: yarn` in transformers.
    """

    name = "yarn"

    def __init__(
        self,
        rope: Rope,
        max_factor: float,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
        temperature: float = 0.1,
    ) -> None:
        if not beta_fast > beta_slow > 0:
            raise ValueError(f"yarn needs beta_fast > beta_slow > 0, got {beta_fast} and {beta_slow}.")
        self._options = {
            "beta_fast": float(beta_fast),
            "beta_slow": float(beta_slow),
            "truncate": bool(truncate),
            "temperature": float(temperature),
        }
        super().__init__(rope, max_factor, _ramp(rope, beta_fast, beta_slow, truncate))
        self.temperature = float(temperature)

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    def attention_scaling(self, t: float) -> float:
        return self.temperature * math.log(t) + 1.0


def _ramp(rope: Rope, beta_fast: float, beta_slow: float, truncate: bool) -> torch.Tensor:
    """r_i in [0, 1], shape [d/2]."""
    dim, base = rope.rotary_dim, rope.base
    assert base is not None  # Rope fills it in

    def index(rotations: float) -> float:
        return dim * math.log(rope.original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = index(beta_fast), index(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 * (low == high)  # a step instead of a division by zero, as transformers has it
    return ((torch.arange(dim // 2, dtype=torch.float64, device="cpu") - low) / (high - low)).clamp(0, 1)


def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, max_position_embeddings: int) -> Scaling:
    original, longest = original_length_in(parameters), max_position_embeddings
    factor = float(parameters.get("factor") or longest / original)
    if factor < 1:
        raise ValueError(f"its factor is null, and max_position_embeddings {longest} is below {original}.")
    options: dict[str, Any] = {name: parameters[name] for name in ("beta_fast", "beta_slow") if parameters.get(name)}
    options["truncate"] = bool(parameters.get("truncate", True))
    if parameters.get("attention_factor") is not None and factor > 1:
        options["temperature"] = (parameters["attention_factor"] - 1) / math.log(factor)
    return Scaling(factor, original, longest, Static(factor), options, 1 / rope.powers)


ROPE_TYPE = RopeType(
    "yarn",
    from_rope_parameters,
    {
        "attention_factor": POSITIVE,
        "beta_fast": NOT_NEGATIVE,  # 0 counts as not given
        "beta_slow": NOT_NEGATIVE,
        "truncate": SWITCH,
        "finetuned": ANY,  # tells how the weights of the YaRN repository were made, and changes no frequency
    },
)
