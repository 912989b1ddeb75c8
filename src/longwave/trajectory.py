"""A scaling method as a trajectory of log-frequencies over the length factor, and its frozen points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from longwave.rope import Rope
from longwave.schedule import tokens_at


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A trajectory frozen at one t: all that an exporter or a serving engine needs to know.

    Arguments:
        factor: t, the length factor.
        inv_freq: θ(t) in rad/token, float64, shape [d/2].
        stretch: λ_i = θ_i(1)/θ_i(t), what t adds to the pre-trained frequencies, float64, shape [d/2].
        factors: λ_i in θ_i(t) = 1/(λ_i·b^(2i/d)), float32, shape [d/2]: what `rope_type: longrope` configs carry.
            They are `stretch`, unless the model was trained with scaled frequencies.
        attention_scaling: multiplies cos and sin; attention logits grow by its square.
        original_length: L in tokens; the snapshot serves sequences of up to t·L.
        length: or of up to so many tokens, where that is another number: what was asked for.
        query_scaling: attention layer -> the factor on the queries of each head, which stands for a learned exponent of
            log-n; empty where queries are as they were.
    """

    factor: float
    inv_freq: Tensor
    stretch: Tensor
    factors: Tensor
    attention_scaling: float
    original_length: int
    length: int | None = None
    query_scaling: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def rotary_dim(self) -> int:
        return 2 * self.inv_freq.numel()

    @property
    def max_length(self) -> int:
        """`length`, or ⌊t·L⌋, in tokens."""
        return tokens_at(self.factor, self.original_length) if self.length is None else self.length

    def with_log_n(self, exponent: float) -> Snapshot:
        """With per-query log-n as the constant that it is for the last query: c = (ln tL / ln L)^exponent.

        No serving engine scales each query by its own position. cos and sin are on both sides of a logit, so √c
        on them is c on it, where the whole head is rotated.
        """
        return replace(self, attention_scaling=self.attention_scaling * self.constant_log_n(exponent))

    def constant_log_n(self, exponent: float) -> float:
        """√c, see `with_log_n`."""
        reach = math.log(max(1.0, self.factor) * self.original_length)
        return float((reach / math.log(self.original_length)) ** (exponent / 2))


class Trajectory(nn.Module, ABC):
    """z(t) = ln θ(t) for t in [1, max_factor], with z(1) the pre-trained frequencies, exactly.

    A subclass writes `log_freq` and, where it has them, `rate`, `attention_scaling` and `options`.
    `t` is a number or a tensor of any shape [...]; results have shape [..., d/2] and are float64
    (float32 on devices without float64), whatever `.to(dtype)` or autocast say: at position 10^6 a
    bfloat16 frequency turns a pair by the wrong thousand radians.

    Arguments:
        rope: the pre-trained rotary embedding.
        max_factor: the largest t in use.

    Raises:
        ValueError: if max_factor is below 1 or not finite, or t is below 1.
    """

    name: str
    log_freq_1: Tensor

    def __init__(self, rope: Rope, max_factor: float) -> None:
        super().__init__()
        if not (math.isfinite(max_factor) and max_factor >= 1):
            raise ValueError(f"max_factor must be a finite number >= 1, got {max_factor}. 8 means 8 times the length.")
        self.rope = rope
        self.max_factor = float(max_factor)
        self.register_buffer("log_freq_1", rope.log_freq, persistent=False)

    @abstractmethod
    def log_freq(self, t: float | Tensor) -> Tensor:
        """z(t), differentiable in the method's parameters."""

    def rate(self, t: float | Tensor) -> Tensor:
        """dz/dt at t, by automatic differentiation of `log_freq`; a subclass that knows it in closed form says it."""
        at = torch.as_tensor(t, dtype=self.log_freq_1.dtype, device=self.log_freq_1.device)
        return cast(Tensor, torch.func.jvp(self.log_freq, (at,), (torch.ones_like(at),))[1])

    def attention_scaling(self, t: float) -> float:
        """The factor on cos and sin at t; 1 at t = 1."""
        return 1.0

    def options(self) -> dict[str, Any]:
        """The constructor's keyword arguments beyond `rope` and `max_factor`, as JSON values."""
        return {}

    def inv_freq(self, t: float | Tensor) -> Tensor:
        """θ(t) = exp z(t) in rad/token."""
        return self.log_freq(t).exp()

    @torch.no_grad()
    def at(self, t: float) -> Snapshot:
        """Freeze the trajectory at t."""
        log_freq = self.log_freq(float(t))
        stretch = (self.log_freq_1 - log_freq).exp().cpu()
        factors = (stretch * self.rope.factors).float()
        scaling, length = self.attention_scaling(t), self.rope.original_length
        return Snapshot(float(t), log_freq.exp().cpu(), stretch, factors, scaling, length)

    def as_factor(self, t: float | Tensor) -> Tensor:
        """t as a tensor [..., 1] beside the frequencies. Numbers below 1 are refused."""
        if not isinstance(t, Tensor) and not (math.isfinite(t) and t >= 1):
            raise ValueError(f"length factor t must be a number >= 1, got {t}.")
        reference = self.log_freq_1
        return torch.as_tensor(t, dtype=reference.dtype, device=reference.device).unsqueeze(-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Trajectory:
        """Follow the model to another device, but never to another precision."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_meta:  # materialising (`to_empty`): values are undefined anyway, the dtype is not
                return fn(tensor).to(tensor.dtype)
            device = fn(tensor.new_empty(0)).device
            dtype = torch.float32 if device.type == "mps" and tensor.dtype == torch.float64 else tensor.dtype
            return tensor.to(device, dtype)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self
