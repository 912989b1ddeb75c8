"""What both ways to run tasks share: names as a user gives them, and what a result says of the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from longwave.architectures import host_of
from longwave.generation import rotaries_of
from longwave.logn import log_n_of


def known(asked: Sequence[str], available: Sequence[str]) -> list[str]:
    """The available names among those asked for; `*` stands for any text.

    Raises:
        ValueError: for a name that is none of them, with the nearest ones.
    """
    found: list[str] = []
    for name in asked:
        matches = [other for other in available if fnmatchcase(other, name)]
        if not matches:
            close = difflib.get_close_matches(name, available, 3)
            hint = f"Did you mean {', '.join(close)}?" if close else f"Available: {', '.join(available[:20])}, ..."
            raise ValueError(f"unknown task {name!r}. {hint}")
        found += matches
    return list(dict.fromkeys(found))


def steering(model: nn.Module) -> dict[str, Any] | None:
    """The extension and how its t is chosen at the moment, None for a plain model."""
    found = rotaries_of(model)
    if not found:
        return None
    factor = found[0].factor
    return {
        "method": found[0].trajectory.name,
        "schedule": found[0].schedule.spec,
        "max_factor": found[0].trajectory.max_factor,
        "log_n": log_n_of(host_of(model)),
        "policy": "fixed" if factor is not None else "grow" if found[0].grows else "fit",
        "factor": factor.tolist() if isinstance(factor, Tensor) else factor,
    }
