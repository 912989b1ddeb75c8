"""The drop-in rotary module: it turns position ids into cos and sin, by the model's own code at other frequencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longwave.extensions.dial import Dial
from longwave.extensions.frequencies import Solutions, solve
from longwave.extensions.standin import StandIn, frequency_name, undecorated_forward
from longwave.schedule import Schedule
from longwave.trajectory import Trajectory

Group = tuple[Tensor | None, Tensor, float | Tensor]  # rows (None: all), their frequencies and attention scaling


class ScaledRotary(nn.Module):
    """Takes the place of a model's rotary module and has its interface: (x, position_ids) -> cos, sin.

    The model's own module, `base`, has a forward. This forward runs on a stand-in whose frequencies are θ(t). It runs
    without its decorators, which switch gradients off and rescale by their own rules. Layout, partial rotation,
    multi-axis positions and the model's own attention scaling stay the model's business.
    At t = 1 the frequencies are the ones `base` holds, bit for bit.

    The dial reads t from the position ids. Each row of a batch has its own t, and so has each sequence packed into a
    row. The base runs once for each distinct t. Frequencies, positions and angles stay float32 or better under
    `.to(bfloat16)` and autocast.

    Arguments:
        base: the model's own rotary module.
        trajectory: z(t) for L = trajectory.rope.original_length.
        dial: position ids -> t.
        layer_type: the layer type to scale, if the module has one set of frequencies per layer type.

    Raises:
        ValueError: from forward, if a sequence is longer than max_factor·L and the dial refuses it.
    """

    powers: Tensor
    factors: Tensor

    def __init__(self, base: nn.Module, trajectory: Trajectory, dial: Dial, *, layer_type: str | None = None) -> None:
        super().__init__()
        self.base = base
        self.trajectory = trajectory
        self.dial = dial
        self.layer_type = layer_type
        self.register_buffer("powers", trajectory.rope.powers, persistent=False)
        self.register_buffer("factors", trajectory.rope.factors, persistent=False)
        self._solutions = Solutions()
        # For compiled steps, which may not ask the dial: reading its t would compile them anew for each. Either all
        # rows share `_steady`, or `_groups` has the rows of each t.
        self._settled = False
        self._steady: tuple[Tensor, Tensor] | None = None
        self._groups: list[Group] = []

    @property
    def factor(self) -> float | Tensor | None:
        """The fixed t of the dial; None if t follows the length."""
        return self.dial.now.factor

    @factor.setter
    def factor(self, factor: float | Tensor | None) -> None:
        self.dial.set(factor=factor)

    @property
    def beyond(self) -> str:
        """What a sequence over max_factor·L tokens does."""
        return self.dial.now.beyond

    @beyond.setter
    def beyond(self, beyond: str) -> None:
        self.dial.set(beyond=beyond)

    @property
    def generating(self) -> bool:
        """Whether `generate` runs in this thread."""
        return self.dial.now.generating

    @property
    def schedule(self) -> Schedule:
        """Length -> t."""
        return self.dial.now.schedule

    @property
    def max_length(self) -> int:
        """The longest sequence in range, in tokens."""
        return self.dial.max_length

    def factor_for(self, length: int) -> float:
        """t for a sequence of `length` tokens."""
        return self.dial.factor_for(length)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """What the base returns (mostly cos and sin, [batch, n, d]), at θ(t)."""
        if layer_type != self.layer_type:  # the local layers of a mixed model keep their own rotation
            return self.base(x, position_ids, layer_type)
        # A compiled step cannot ask whether the parameters have changed; while they are trained a step must ask.
        if torch.compiler.is_compiling():
            settled = self._settled and not torch.is_grad_enabled()
            groups = (self._groups or self._steady_group()) if settled else None
        else:
            setting = self.dial.now
            groups = setting.solved.get(self) if setting.generating else None
        if groups is not None:
            return self._rotate(x, position_ids, groups)
        factor = self.dial.read(position_ids)
        if not isinstance(factor, Tensor):
            return self._run(x, position_ids, *self._at(factor))
        if factor.ndim == 1:
            return self._rotate(x, position_ids, self._by_factor(factor.tolist()))
        return self._mix(x, position_ids, factor)

    def _at(self, factor: float) -> tuple[Tensor, float]:
        """Frequencies and attention scaling at one t."""
        constant = self.dial.now.constant_scaling
        return self._frequencies(factor), self.trajectory.attention_scaling(factor) * constant

    def _run(self, x: Tensor, position_ids: Tensor, inv_freq: Tensor, attention_scaling: float | Tensor) -> Any:
        """The base's forward on a stand-in: position ids become cos and sin here."""
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        scaling = getattr(self.base, f"{prefix}attention_scaling", 1.0) * attention_scaling
        ours: dict[str, Any] = {
            f"{prefix}inv_freq": inv_freq,
            f"{prefix}attention_scaling": scaling,
            "rope_init_fn": lambda *_, **__: (inv_freq, scaling),  # phimoe calls it in every forward
        }
        layer = () if self.layer_type is None else (self.layer_type,)
        with torch.autocast(x.device.type, enabled=False):
            return undecorated_forward(self.base)(StandIn(self.base, ours), x, position_ids, *layer)

    def _rotate(self, x: Tensor, position_ids: Tensor, groups: Sequence[Group]) -> Any:
        """One forward of the base for every distinct t, put back in the order of the batch."""
        if groups[0][0] is None:
            return self._run(x, position_ids, *groups[0][1:])
        position_ids = position_ids.expand(*position_ids.shape[:-2], x.shape[0], -1)
        order = torch.cat([rows for rows, *_ in groups if rows is not None])
        if len(order) != x.shape[0]:
            raise ValueError(
                f"factor has shape ({len(order)},) but the batch has {x.shape[0]} rows. "
                "Set a number, or one t for each row (beams and returned sequences are rows, too)."
            )
        parts = [
            self._run(x[rows], position_ids[..., rows, :], inv_freq, scaling) for rows, inv_freq, scaling in groups
        ]
        order = order.argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[order]
        return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))

    def _by_factor(self, factors: Sequence[float]) -> list[Group]:
        """The rows of each distinct t, with its frequencies and attention scaling."""
        device = self._own.device
        rows = {t: [row for row, own in enumerate(factors) if own == t] for t in sorted(set(factors))}
        return [(torch.tensor(own, device=device), *self._at(t)) for t, own in rows.items()]

    def _mix(self, x: Tensor, position_ids: Tensor, factors: Tensor) -> Any:
        """One forward of the base for every distinct t; each token takes the result of its own t."""
        mixed: Any = None
        for t in factors.unique().tolist():
            part = self._run(x, position_ids, *self._at(t))
            own = (factors == t).to(x.device)
            if mixed is None:
                mixed = part
            elif isinstance(part, Tensor):
                mixed = _choose(own, part, mixed)
            else:
                mixed = tuple(_choose(own, new, old) for new, old in zip(part, mixed, strict=True))
        return mixed

    @property
    def _own(self) -> Tensor:
        own: Tensor = getattr(self.base, frequency_name(self.layer_type))
        return own

    def _frequencies(self, factor: float) -> Tensor:
        """θ(t) for the stand-in: as many entries as the base has, on its device, float32 or better."""
        own, parameters = self._own, list(self.trajectory.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            inv_freq = self._solve_untraced(factor)
            # own + 0: bit for bit the model's numbers, yet connected, so that DistributedDataParallel
            # finds every parameter in the graph of a step at t = 1
            return own + (inv_freq - inv_freq.detach()) if factor == 1 else inv_freq
        if factor == 1:
            return own
        if torch.compiler.is_compiling() and not parameters:
            return self._solve(factor)  # a few element-wise operations, best left to the compiler
        return self._cached(factor)

    def _solve(self, factor: float) -> Tensor:
        return solve(self.trajectory, factor, self._own, self.factors, self.powers)

    @torch.compiler.disable  # torchdiffeq branches on tensors: one graph break, before the first layer
    def _solve_untraced(self, factor: float) -> Tensor:
        return self._solve(factor)

    @torch.compiler.disable
    @torch.no_grad()
    def _cached(self, factor: float) -> Tensor:
        return self._solutions.at(factor, list(self.trajectory.parameters()), self._solve)

    def same_frequencies(self, a: float, b: float) -> bool:
        """Whether two t make no difference (`none`, or a trajectory that stands still)."""
        return torch.equal(self._cached(a), self._cached(b))

    @torch.no_grad()
    def settle(self) -> None:
        """Solve for the setting in force, because steps of `generate` and compiled steps must not solve."""
        setting = self.dial.now
        self._groups, self._settled = [], setting.factor is not None
        if not self._settled:
            return
        if len(set(setting.row_factors)) > 1:
            self._groups = setting.solved[self] = self._by_factor(setting.row_factors)
            return
        inv_freq, scaling = self._at(setting.row_factors[0])
        setting.solved[self] = [(None, inv_freq, scaling)]
        self._keep_steady(inv_freq, scaling)

    def _keep_steady(self, inv_freq: Tensor, scaling: float) -> None:
        """Write the shared values of all rows into tensors that stay in place: no new t compiles a step again."""
        # At t = 1 they are the base's own tensors. A cast model may hold these in bfloat16, too coarse for other t.
        if self._steady is None or self._steady[0].dtype != inv_freq.dtype:
            with torch.inference_mode(False):  # else only inference mode could write to them later
                self._steady = torch.empty_like(inv_freq), torch.empty((), device=inv_freq.device)
        for kept, new in zip(self._steady, (inv_freq, torch.tensor(scaling)), strict=True):
            kept.copy_(new)

    def _steady_group(self) -> list[Group] | None:
        return None if self._steady is None else [(None, *self._steady)]

    def train(self, mode: bool = True) -> ScaledRotary:
        """As `nn.Module.train`; on the way to evaluation the frequencies of a fixed t are solved again."""
        super().train(mode)
        if not (mode or self.generating):
            self.settle()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaledRotary:
        """Follow the model to another device; frequencies keep their precision (see `Trajectory._apply`)."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        self._solutions.clear()
        self._steady = None
        super()._apply(move, recurse)
        self.settle()
        return self

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its rotary module (`config`, `inv_freq`) are the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def extra_repr(self) -> str:
        dial = self.dial
        return (
            f"{self.trajectory.name}@{dial.now.schedule.spec}, original_length={dial.original_length}, "
            f"max_factor={dial.max_factor:g}, beyond={dial.now.beyond}"
        )


def _choose(own: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` at the tokens that are its `own` [batch, n], `old` elsewhere; both [batch, n, ...]."""
    return torch.where(own.reshape(*own.shape, *[1] * (new.ndim - 2)), new, old)
