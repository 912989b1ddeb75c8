"""The learned field of CLEX that moves neighbouring pairs alike, and may slow a pair below interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from longwave.methods.fields import LogField
from longwave.trajectory import Trajectory

COSINES = 4


class SmoothField(LogField):
    """A field that is smooth over the pair index: dr/du = -ρ_i(u)·tanh(Σ_k c_ik·h_k(x, u)).

    u = ln t is the clock, and ρ_i(u) = -dz_prior/du is the prior's own rate: 0 keeps a pair, 1 interpolates it. The
    K cosines c_ik = cos(πk(i + 1/2)/P), k < K, are waves over the P pairs. The network h has K outputs and is zero at
    the start. It reads u and x_k = (1/P)·Σ_i c_ik·(z_i - z_i(1)), so that few parameters exist.

    The whole rate -dz/du = ρ·(1 + tanh) is between 0 and 2ρ. Hence

        2·z_prior(t) - z(1)  <=  z(t)  <=  z(1).

    A pair may turn faster than the prior has it, up to no scaling at all, and slower: under Position Interpolation
    down to θ(1)/t². θ never rises with t, and a pair that the prior keeps is kept. The field cannot overflow: |r| is at
    most what the prior moves ln θ by. All this holds where the prior's own θ never rises, as that of every prior here.

    Arguments:
        prior: what r is added to.
        hidden, activation: of the network, as in `Field`.
        cosines: K, between 1 and P; None for 4, or P where there are fewer pairs.

    Raises:
        ValueError: for another number of cosines.
    """

    waves: Tensor

    def __init__(self, prior: Trajectory, hidden: int, activation: str, cosines: int | None = None) -> None:
        pairs = prior.log_freq_1.numel()
        count = min(COSINES, pairs) if cosines is None else cosines
        if type(count) is not int or not 1 <= count <= pairs:
            raise ValueError(f"cosines must be a whole number between 1 and the {pairs} pairs, got {cosines!r}.")
        super().__init__(count, hidden, activation)
        self.prior = prior
        index = torch.arange(pairs, dtype=torch.float64, device="cpu")[:, None] + 0.5
        waves = (math.pi / pairs * index * torch.arange(count, dtype=torch.float64, device="cpu")).cos()
        self.register_buffer("waves", waves.to(prior.log_freq_1), persistent=False)

    def options(self) -> dict[str, Any]:
        return {"cosines": self.waves.shape[1]}

    def forward(self, t: Tensor, log_freq: Tensor) -> Tensor:
        moved = (log_freq - self.prior.log_freq_1) @ self.waves / len(self.waves)
        push = self.push(t, moved)
        share = (push @ self.waves.T.to(push.dtype)).tanh()
        return t * self.prior.rate(t.squeeze(-1)) * share  # t·dz/dt = dz/du = -ρ; exactly zero at h = 0
