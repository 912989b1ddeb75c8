"""What `bridge` and `local` share: names as a user gives them, and what a result says of the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from longwave.evaluation.decoded import must_decode
from longwave.extensions.handle import find_extension


def known(asked: Sequence[str], available: Sequence[str]) -> list[str]:
    """The available names that match the names asked for; `*` stands for any text.

    Raises:
        ValueError: for a name that matches none, with the nearest ones.
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
    """The extension, and how its t is chosen at present; None for a plain model."""
    handle = find_extension(model)
    if handle is None:
        return None
    factor = handle.dial.now.factor
    return {
        "method": handle.spec,
        "schedule": handle.schedule.spec,
        "options": handle.options,
        "max_factor": handle.max_factor,
        "log_n": handle.log_n,
        "policy": handle.dial.policy,
        "factor": factor.tolist() if isinstance(factor, Tensor) else factor,
        **({"decoded": True} if must_decode(model) else {}),
    }
