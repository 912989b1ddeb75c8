"""Position Interpolation: every frequency divided by t."""

from __future__ import annotations

from torch import Tensor

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
