"""Deprecated: `longwave.extension(model)` tells what is on a model."""

from __future__ import annotations

import warnings

from torch import nn

from longwave.extensions.handle import find_extension
from longwave.extensions.rotary import ScaledRotary


def rotaries_of(model: nn.Module) -> list[ScaledRotary]:
    """The scaled rotary modules of a model, none of a plain one."""
    warnings.warn("longwave.generation.rotaries_of is now longwave.extension(model).rotaries.", DeprecationWarning, 2)
    handle = find_extension(model)
    return [] if handle is None else handle.rotaries
