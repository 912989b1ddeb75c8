"""Run a model's own rotary module with other frequencies than its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


class StandIn:
    """The `self` that the module's forward sees: longwave's frequencies, and everything else from the module.

    Names that the forward uses are copied, because torch.compile traces plain attributes but no proxies. Names that
    the forward composes at run time are looked up on the module.

    Arguments:
        base: the model's own rotary module.
        ours: the attributes to put in the place of the module's.
    """

    def __init__(self, base: nn.Module, ours: dict[str, Any]) -> None:
        self.base = base
        for name in undecorated_forward(base).__code__.co_names:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        for name, value in ours.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


def undecorated_forward(base: nn.Module) -> Callable[..., Any]:
    """The forward as written, without `torch.no_grad` and `dynamic_rope_update` around it."""
    return inspect.unwrap(type(base).forward)


def frequency_name(layer_type: str | None, name: str = "inv_freq") -> str:
    """The attribute that holds a rotary module's frequencies."""
    return name if layer_type is None else f"{layer_type}_{name}"
