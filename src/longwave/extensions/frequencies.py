"""The frequencies of a rotary module: solved once for each t, and again when a parameter has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from longwave.trajectory import Trajectory

KEPT = 64  # number of solutions kept, one for each t: more than a batch has, and small


def solve(trajectory: Trajectory, t: float, own: Tensor, factors: Tensor, powers: Tensor) -> Tensor:
    """θ_i(t) = 1/(λ_i·b^(2i/d)) with λ_i in float32.

    transformers computes the frequencies of a `longrope` config in the same way. An export therefore has the same
    frequencies, bit for bit. Rounding λ moves θ by one part in 10^7, as rounding θ itself would.

    Arguments:
        own: the module's own frequencies. A frequency of 0 (a dimension that does not turn) is not in the trajectory.
        factors: λ_i(1), see `Rope.factors`.
        powers: b^(2i/d), see `Rope.powers`.
    """
    stretch = (trajectory.log_freq_1 - trajectory.log_freq(t)).exp()
    inv_freq = 1.0 / ((stretch.to(own.device) * factors).float() * powers)
    return functional.pad(inv_freq, (0, own.numel() - inv_freq.numel()))


class Solutions:
    """θ by t, while the parameters stay as they were.

    Contents are compared, not version counters: a write through `.data` moves no counter, and the parameters are
    small enough (tens of thousands of numbers) for a comparison at each step.
    """

    def __init__(self) -> None:
        self._found: dict[float, Tensor] = {}
        self._parameters: list[Tensor] | None = None

    def clear(self) -> None:
        """Forget all solutions: the model has moved to another device."""
        self._found, self._parameters = {}, None

    def at(self, t: float, parameters: Sequence[Tensor], solve: Callable[[float], Tensor]) -> Tensor:
        """θ(t), computed by `solve` if it is not known yet."""
        if not self._are_of(parameters) or len(self._found) >= KEPT:
            self._found, self._parameters = {}, [parameter.clone() for parameter in parameters]
        if t not in self._found:
            self._found[t] = solve(t)
        return self._found[t]

    def _are_of(self, parameters: Sequence[Tensor]) -> bool:
        known = self._parameters
        return known is not None and all(
            a.device == b.device and torch.equal(a, b) for a, b in zip(known, parameters, strict=True)
        )
