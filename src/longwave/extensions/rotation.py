"""Position ids become cos and sin here: the model's own rotary forward, once for every distinct t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longwave.extensions.standin import StandIn, undecorated_forward


@dataclass(frozen=True, eq=False)
class Turn:
    """How some rows of a batch are rotated.

    Arguments:
        inv_freq: θ(t) in rad/token.
        scaling: of cos and sin, beside the module's own.
        rows: which rows, int64; None for all of them.
    """

    inv_freq: Tensor
    scaling: float | Tensor
    rows: Tensor | None = None


class Rotation:
    """The forward of a model's rotary module at other frequencies than its own.

    Arguments:
        base: the module.
        layer_type: which of its frequencies are replaced; None where it has one set.
    """

    def __init__(self, base: nn.Module, layer_type: str | None = None) -> None:
        self.base, self.layer_type = base, layer_type

    def run(self, x: Tensor, position_ids: Tensor, turn: Turn) -> Any:
        """What the base returns (mostly cos and sin, [batch, n, d]) on a stand-in that holds the frequencies."""
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        inv_freq, scaling = turn.inv_freq, getattr(self.base, f"{prefix}attention_scaling", 1.0) * turn.scaling
        ours: dict[str, Any] = {
            f"{prefix}inv_freq": inv_freq,
            f"{prefix}attention_scaling": scaling,
            "rope_init_fn": lambda *_, **__: (inv_freq, scaling),  # phimoe calls it in every forward
        }
        layer = () if self.layer_type is None else (self.layer_type,)
        with torch.autocast(x.device.type, enabled=False):
            return undecorated_forward(self.base)(StandIn(self.base, ours), x, position_ids, *layer)

    def rows(self, x: Tensor, position_ids: Tensor, turns: Sequence[Turn]) -> Any:
        """Every row by its own turn, put back in the order of the batch."""
        if turns[0].rows is None:
            return self.run(x, position_ids, turns[0])
        position_ids = position_ids.expand(*position_ids.shape[:-2], x.shape[0], -1)
        order = torch.cat([turn.rows for turn in turns if turn.rows is not None])
        if len(order) != x.shape[0]:
            raise ValueError(
                f"factor has shape ({len(order)},) but the batch has {x.shape[0]} rows. "
                "Set a number, or one t for each row (beams and returned sequences are rows, too)."
            )
        parts = [self.run(x[turn.rows], position_ids[..., turn.rows, :], turn) for turn in turns]
        order = order.argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[order]
        return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))

    def tokens(self, x: Tensor, position_ids: Tensor, factors: Tensor, turn_at: Callable[[float], Turn]) -> Any:
        """Every token by the turn at its own t: `factors` is [batch, n]."""
        mixed: Any = None
        for t in factors.unique().tolist():
            part = self.run(x, position_ids, turn_at(t))
            own = (factors == t).to(x.device)
            if mixed is None:
                mixed = part
            elif isinstance(part, Tensor):
                mixed = choose(own, part, mixed)
            else:
                mixed = tuple(choose(own, new, old) for new, old in zip(part, mixed, strict=True))
        return mixed


def choose(own: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` at the tokens that are its `own` [batch, n], `old` elsewhere; both [batch, n, ...]."""
    return torch.where(own.reshape(*own.shape, *[1] * (new.ndim - 2)), new, old)
