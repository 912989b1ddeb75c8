"""The learned vector fields of CLEX: what is added to a closed-form prior's rate of change.

All start at exactly zero, so that a new CLEX is its prior. Each has a clock, the variable in which
its trajectory is smooth and a few solver steps suffice. A field computes in its parameters' precision
(float32): it moves ln θ by a few units at most, so θ is still good to 10^-6.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longwave.names import unknown
from longwave.trajectory import Trajectory

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": functional.silu, "tanh": torch.tanh}


class Field(nn.Module, ABC):
    """dr/dc: how fast the residual r = z - z_prior moves at clock time c.

    Arguments:
        width: how many numbers its network reads and writes; d/2, the number of frequencies, in most fields.
        hidden: width of the hidden layer, λd for the amplification factor λ.
        activation: `silu` or `tanh`.
    """

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(unknown("activation", activation, ACTIVATIONS))
        self.activation = ACTIVATIONS[activation]
        self.up_proj = nn.Parameter(torch.empty(width, hidden))
        self.down_proj = nn.Parameter(torch.zeros(hidden, width))
        nn.init.kaiming_uniform_(self.up_proj, a=math.sqrt(5))

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """c(t), with c(1) = 0."""

    @abstractmethod
    def factor(self, clock: Tensor) -> Tensor:
        """t(c), the inverse of `clock`."""

    @abstractmethod
    def forward(self, t: Tensor, log_freq: Tensor) -> Tensor:
        """dr/dc at z. Shapes: t [..., 1]; z and the result [..., d/2]."""

    def options(self) -> dict[str, Any]:
        """The constructor's own keyword arguments, as JSON values."""
        return {}


class AdditiveField(Field):
    """The published field: dr/dt = σ((z + ln θ^NTK(t)) W_up) W_down, clock c = ln(2t - 1).

    The offset ln θ^NTK(t) = -(2i/d) ln 10^4 - (2i/(d-2)) ln(2t - 1) has base 10^4 whatever the
    model's own base is, and nothing bounds the result: released checkpoints depend on the one, and
    the other is why `BoundedField` exists. In c = ln(2t - 1) the NTK prior is a straight line.

    Source: CLEX, equations 11-13 (arXiv 2310.16450) and its code (github.com/DAMO-NLP-SG/CLEX).
    """

    offset: Tensor
    exponent: Tensor

    def __init__(self, prior: Trajectory, hidden: int, activation: str) -> None:
        pairs = prior.log_freq_1.numel()
        super().__init__(pairs, hidden, activation)
        index = torch.arange(pairs, dtype=torch.float64, device="cpu")
        self.register_buffer("offset", -index / pairs * math.log(1e4), persistent=False)
        self.register_buffer("exponent", index / max(pairs - 1, 1), persistent=False)

    def clock(self, t: Tensor) -> Tensor:
        return (2 * t - 1).log()

    def factor(self, clock: Tensor) -> Tensor:
        return (clock.exp() + 1) / 2

    def forward(self, t: Tensor, log_freq: Tensor) -> Tensor:
        offset = self.offset - self.exponent * (2 * t - 1).log()
        hidden = self.activation((log_freq + offset).to(self.up_proj.dtype) @ self.up_proj)
        return (t - 0.5) * (hidden @ self.down_proj)  # dt/dc = t - 1/2


class LogField(Field):
    """A field over the clock u = ln t whose network h(x, u) has one hidden layer and is zero at the start."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__(width, hidden, activation)
        bound = 1 / math.sqrt(width)
        self.time_proj = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.up_bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.down_bias = nn.Parameter(torch.zeros(width))

    def clock(self, t: Tensor) -> Tensor:
        return t.log()

    def factor(self, clock: Tensor) -> Tensor:
        return clock.exp()

    def push(self, t: Tensor, x: Tensor) -> Tensor:
        """h(x, ln t), in the precision of the parameters. Shapes: t [..., 1]; x and the result [..., width]."""
        dtype = self.up_proj.dtype
        lifted = functional.linear(x.to(dtype), self.up_proj.T, self.up_bias) + t.log().to(dtype) * self.time_proj
        return functional.linear(self.activation(lifted), self.down_proj.T, self.down_bias)


class BoundedField(LogField):
    """A field that cannot overflow: dr/du = -[sigmoid(logit ρ_c + h(z - z(1), u)) - ρ_c].

    u = ln t is the clock and h a network of one hidden layer, zero at the start. ρ_c = clip(ρ̄, 0.01, 0.99) for
    the prior's mean rate ρ̄ = (z(1) - z_prior(T))/ln T up to T = 16 (0: the pair is kept, 1: interpolated).
    The deviation from the prior is bounded by 1 per unit of u; the additive field has no bound. A pair starts to
    move with the slope ρ_c(1 - ρ_c) of the sigmoid: slowly where the prior keeps it, or interpolates it fully.

    The mean and not the rate at u, because NTK's rate passes 1 on the way: clipped there, it puts kinks into
    the field that cost a fixed-step solver two digits. The price is that the whole way to T stays between no
    scaling and interpolation where the prior does, but not every point on it. T is fixed, so that what was
    learned does not depend on the largest factor in use.
    """

    margin, reference = 0.01, 16.0
    log_freq_1: Tensor
    prior_logit: Tensor

    def __init__(self, prior: Trajectory, hidden: int, activation: str) -> None:
        begin = prior.log_freq_1
        super().__init__(begin.numel(), hidden, activation)
        rate = (begin - prior.log_freq(self.reference)) / math.log(self.reference)
        self.register_buffer("log_freq_1", begin, persistent=False)
        self.register_buffer("prior_logit", rate.clamp(self.margin, 1 - self.margin).logit(), persistent=False)

    def forward(self, t: Tensor, log_freq: Tensor) -> Tensor:
        push = self.push(t, log_freq - self.log_freq_1)
        start = self.prior_logit.to(push.dtype)
        return start.sigmoid() - (start + push).sigmoid()  # exactly zero at h = 0
