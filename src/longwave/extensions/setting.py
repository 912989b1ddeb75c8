"""What a dial is set to: how t follows the length."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from longwave.names import unknown
from longwave.schedule import Schedule

BEYOND = ("error", "clamp")


@dataclass(frozen=True, eq=False)
class Setting:
    """How t follows the length.

    Arguments:
        schedule: n tokens -> t.
        beyond: what a sequence over max_factor·L tokens does: `error`, or `clamp` to run at max_factor.
        factor: t of all sequences, or of each row [batch]; with None the lengths decide t.
        grows: lengths count as L, 2L, 4L, ...
        constant_scaling: a factor on cos and sin beside the trajectory's own, see `longwave.frozen`; None where the
            model is not frozen.
        call: the `generate` that runs in this thread.
        generating: `call` has checked the lengths. Until `call` ends, neither t nor a parameter changes.
        solved: results that the followers have computed for this setting.
    """

    schedule: Schedule
    beyond: str = "error"
    factor: float | Tensor | None = None
    grows: bool = False
    constant_scaling: float | None = None
    call: Any = None
    generating: bool = False
    solved: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.beyond not in BEYOND:
            raise ValueError(unknown("beyond", self.beyond, BEYOND))

    @cached_property
    def row_factors(self) -> tuple[float, ...]:
        """t of all rows, or t of each row, as numbers."""
        return tuple(torch.as_tensor(self.factor, dtype=torch.float64).reshape(-1).tolist())
