"""The form that YaRN and Llama 3 share: each pair interpolated by its own fixed share."""

from __future__ import annotations

from torch import Tensor

from longwave.rope import Rope
from longwave.trajectory import Trajectory


class ByParts(Trajectory):
    """θ_i(t) = θ_i(1)·(1 - r_i + r_i/t): r_i = 0 keeps a pair, r_i = 1 interpolates it fully.

    Abstract: a method gives the ramp r, shape [d/2], values in [0, 1].
    """

    ramp: Tensor

    def __init__(self, rope: Rope, max_factor: float, ramp: Tensor) -> None:
        super().__init__(rope, max_factor)
        self.register_buffer("ramp", ramp, persistent=False)

    def log_freq(self, t: float | Tensor) -> Tensor:
        # log1p keeps z(1) exact: ln(1 - r + r) would round
        return self.log_freq_1 + (self.ramp * (1 / self.as_factor(t) - 1)).log1p()

    def rate(self, t: float | Tensor) -> Tensor:
        factor = self.as_factor(t)
        return -self.ramp / factor**2 / (1 + self.ramp * (1 / factor - 1))
