"""The frequencies of a rotary module: solved once for each t, and again when a parameter has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from longwave.extensions.standin import frequency_name
from longwave.trajectory import Trajectory

KEPT = 64  # number of solutions kept, one for each t: more than a batch has, and small


class Solutions:
    """θ by t, while the parameters stay as they were.

    Contents are compared, not version counters: a write through `.data` moves no counter, and the parameters are
    small enough (tens of thousands of numbers) for a comparison at each step.
    """

    def __init__(self) -> None:
        self.found: dict[float, Tensor] = {}
        self.parameters: list[Tensor] | None = None

    def at(self, t: float, parameters: Sequence[Tensor], solve: Callable[[float], Tensor]) -> Tensor:
        """θ(t), by `solve` where it is not known."""
        if not self.are_of(parameters) or len(self.found) >= KEPT:
            self.found, self.parameters = {}, [parameter.clone() for parameter in parameters]
        found = self.found  # another thread may put a new one in its place meanwhile
        if (known := found.get(t)) is None:
            known = found[t] = solve(t)
        return known

    def are_of(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the solutions are those of the parameters as they are now."""
        known = self.parameters
        return known is not None and all(
            a.device == b.device and torch.equal(a, b) for a, b in zip(known, parameters, strict=True)
        )


class Frequencies:
    """θ(t) as a rotary module holds it: as many entries, on its device, float32 or better.

    Arguments:
        base: the model's own rotary module, whose frequencies are those of t = 1.
        trajectory: z(t).
        layer_type: which of the module's frequencies are meant; None where it has one set.
    """

    def __init__(self, base: nn.Module, trajectory: Trajectory, layer_type: str | None = None) -> None:
        self.base, self.trajectory, self.name = base, trajectory, frequency_name(layer_type)
        self.follow()

    @property
    def own(self) -> Tensor:
        """The frequencies that the rotary module holds itself."""
        own: Tensor = getattr(self.base, self.name)
        return own

    def follow(self) -> None:
        """Go to the device that the module is on, and forget what was solved."""
        rope, device = self.trajectory.rope, self.own.device
        self.factors, self.powers = rope.factors.to(device), rope.powers.to(device)
        self.solutions = Solutions()

    def at(self, t: float) -> Tensor:
        """θ(t); at t = 1 the module's own numbers, bit for bit. Gradients reach the trajectory's parameters."""
        own, parameters = self.own, list(self.trajectory.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            inv_freq = self.solve_untraced(t)
            # own + 0: bit for bit the model's numbers, yet connected, so that DistributedDataParallel
            # finds every parameter in the graph of a step at t = 1
            return own + (inv_freq - inv_freq.detach()) if t == 1 else inv_freq
        if t == 1:
            return own
        if torch.compiler.is_compiling() and not parameters:
            return self.solve(t)  # a few element-wise operations, best left to the compiler
        return self.known(t)

    def solve(self, t: float) -> Tensor:
        """θ_i(t) = 1/(λ_i·b^(2i/d)) with λ_i in float32.

        That is how transformers computes the frequencies of a `longrope` config: what an export runs at is what
        ran here, bit for bit. Rounding λ moves θ by one part in 10^7, as rounding θ itself would.
        """
        own, trajectory = self.own, self.trajectory
        stretch = (trajectory.log_freq_1 - trajectory.log_freq(t)).exp()
        inv_freq = 1.0 / ((stretch.to(own.device) * self.factors).float() * self.powers)
        # Frequencies of 0 (dimensions that do not turn) are no part of the trajectory.
        return functional.pad(inv_freq, (0, own.numel() - inv_freq.numel()))

    @torch.compiler.disable  # torchdiffeq branches on tensors: one graph break, before the first layer
    def solve_untraced(self, t: float) -> Tensor:
        """`solve`, outside of a compiled graph."""
        return self.solve(t)

    @torch.compiler.disable
    @torch.no_grad()
    def known(self, t: float) -> Tensor:
        """θ(t) without gradients, from what is solved already."""
        return self.solutions.at(t, list(self.trajectory.parameters()), self.solve)

    def same(self, a: float, b: float) -> bool:
        """Whether two t make no difference (`none`, or a trajectory that stands still)."""
        return torch.equal(self.known(a), self.known(b))
