"""The drop-in rotary module: it has the interface of a model's own, and turns by the frequencies of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longwave.attention.heads import HeadScalars
from longwave.extensions.dial import Dial
from longwave.extensions.frequencies import Frequencies
from longwave.extensions.rotation import Rotation, Turn
from longwave.schedule import Schedule
from longwave.trajectory import Trajectory


class ScaledRotary(nn.Module):
    """Takes the place of a model's rotary module and has its interface: (x, position_ids) -> cos, sin.

    The model's own module, `base`, has a forward. This forward runs on a stand-in whose frequencies are θ(t). It runs
    without its decorators, which switch gradients off and rescale by their own rules. Layout, partial rotation,
    multi-axis positions and the model's own attention scaling stay the model's business.
    At t = 1 the frequencies are the ones `base` holds, bit for bit.
    `heads` holds the learned scalars of the attention layers, where the extension has them.

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

    def __init__(self, base: nn.Module, trajectory: Trajectory, dial: Dial, *, layer_type: str | None = None) -> None:
        super().__init__()
        self.base = base
        self.trajectory = trajectory
        self.dial = dial
        self.layer_type = layer_type
        self.heads: HeadScalars | None = None
        self.frequencies, self.rotation = Frequencies(base, trajectory, layer_type), Rotation(base, layer_type)
        # For compiled steps, which may not ask the dial: reading its t would compile them anew for each. Either all
        # rows share `_steady`, or `_turns` has the rows of each t.
        self._settled = False
        self._steady: tuple[Tensor, Tensor] | None = None
        self._turns: list[Turn] = []

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
        turns = self.prepared()
        if turns:
            return self.rotation.rows(x, position_ids, turns)
        factor = self.dial.read(position_ids)
        if not isinstance(factor, Tensor):
            return self.rotation.run(x, position_ids, self.turn(factor))
        if factor.ndim == 1:
            return self.rotation.rows(x, position_ids, self.turns(factor.tolist()))
        return self.rotation.tokens(x, position_ids, factor, self.turn)

    def turn(self, t: float) -> Turn:
        """Frequencies and attention scaling at one t. Under an attention method they are those of t = 1.

        Its layers rotate by themselves. The others, which ask here, see no distance that is new to them.
        """
        if self.dial.attention is not None:  # at t = 1 a learned trajectory has its gradient, of 0, from here
            return Turn(self.frequencies.at(1.0) if t <= 1 else self.frequencies.own, 1.0)
        scaling, constant = self.trajectory.attention_scaling(t), self.dial.now.constant_scaling
        return Turn(self.frequencies.at(t), scaling if constant is None else scaling * constant)

    def turns(self, factors: Sequence[float]) -> list[Turn]:
        """The rows of each distinct t, with its frequencies and attention scaling."""
        device = self.frequencies.own.device
        rows = {t: [row for row, own in enumerate(factors) if own == t] for t in sorted(set(factors))}
        at = {t: self.turn(t) for t in rows}
        return [Turn(at[t].inv_freq, at[t].scaling, torch.tensor(own, device=device)) for t, own in rows.items()]

    def prepared(self) -> list[Turn] | None:
        """What `settle` has solved, where nothing can have changed since: within `generate`, and when compiled."""
        if not torch.compiler.is_compiling():
            setting = self.dial.now
            return setting.solved.get(self) if setting.generating else None
        # A compiled step cannot ask whether the parameters are still the same ones; while they are trained it must.
        if torch.is_grad_enabled() or not self._settled:
            return None
        return self._turns or (None if self._steady is None else [Turn(*self._steady)])

    def same_frequencies(self, a: float, b: float) -> bool:
        """Whether two t make no difference."""
        return self.frequencies.same(a, b)

    @torch.no_grad()
    def settle(self) -> None:
        """Solve for the setting in force, for steps that must not: those of `generate`, and compiled ones.

        What all rows share is written into tensors that stay where they are: another t compiles no step again.
        """
        setting = self.dial.now
        self._turns, self._settled = [], setting.factor is not None
        if not self._settled:
            return
        if len(set(setting.row_factors)) > 1:
            self._turns = setting.solved[self] = self.turns(setting.row_factors)
            return
        turn = self.turn(setting.row_factors[0])
        setting.solved[self] = [turn]
        # At t = 1 they are the base's own, which a cast model may hold in bfloat16: no place for others.
        if self._steady is None or self._steady[0].dtype != turn.inv_freq.dtype:
            with torch.inference_mode(False):  # else only inference mode could write to them later
                self._steady = torch.empty_like(turn.inv_freq), torch.empty((), device=turn.inv_freq.device)
        for kept, new in zip(self._steady, (turn.inv_freq, torch.tensor(turn.scaling)), strict=True):
            kept.copy_(new)

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

        self._steady = None
        super()._apply(move, recurse)
        self.frequencies.follow()
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
