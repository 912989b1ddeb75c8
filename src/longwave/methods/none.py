"""No scaling: the pre-trained frequencies at every length."""

from __future__ import annotations

import torch
from torch import Tensor

from longwave.trajectory import Trajectory


class Unscaled(Trajectory):
    """z(t) = z(1). The baseline that breaks down beyond L."""

    name = "none"

    def log_freq(self, t: float | Tensor) -> Tensor:
        return self.log_freq_1.expand(*self.as_factor(t).shape[:-1], -1)

    def rate(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(self.log_freq(t))
