"""Training: any transformers causal LM and any method, through one path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longwave.training.run import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name != "train":  # only on use: the command line reads `longwave.training.config` without torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from longwave.training.run import train

    return train
