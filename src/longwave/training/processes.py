"""What the processes of a run agree on. In a run of one process nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed

Result = TypeVar("Result")


def are_several() -> bool:
    """Whether this process is one of several that torch has connected."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def on_first(function: Callable[[], Result]) -> Result:
    """Call a function in the first process alone. Each process gets its result, or its error as a `ValueError`."""
    if not are_several():
        return function()
    from accelerate.utils import broadcast_object_list

    told: list[object] = [None, None]
    if distributed.get_rank() == 0:
        try:
            told[0] = function()
        except (ValueError, OSError) as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1] is not None:
        raise ValueError(told[1])
    return told[0]  # type: ignore[return-value]


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes give; all of them must call this."""
    if not are_several():
        return number
    numbers = torch.tensor(number, device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)
