"""The places of rotary modules in a model, and what stands there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.sites import reset_frequencies


@dataclass(frozen=True, eq=False)
class Seat:
    """A place of the model that refers to a rotary module.

    Arguments:
        parent, name: `getattr(parent, name)` is the rotary module.
        scaled: the checkpoint's own module, with the RoPE scaling of its config, if the extension starts from
            another module; None if the extension starts from the model's own module.
    """

    parent: nn.Module
    name: str
    scaled: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Mount:
    """A scaled rotary module in its place, and the module that `restore` puts there.

    Arguments:
        parent, name: of the seat; or, if a wrapper (PEFT) has taken the seat, of a place inside the wrapper.
        rotary: the scaled module.
        own: the module that was there before `extend`.
    """

    parent: nn.Module
    name: str
    rotary: ScaledRotary
    own: nn.Module

    def put_on(self) -> None:
        reset_frequencies(self.rotary.base, self.rotary.layer_type)
        setattr(self.parent, self.name, self.rotary)


def scaled_inside(model: nn.Module) -> Iterator[tuple[nn.Module, str, ScaledRotary]]:
    """Every scaled rotary module inside: its parent, its name there, and the module."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, ScaledRotary):
                yield parent, name, child
