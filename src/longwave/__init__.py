"""longwave: context extension for RoPE language models.

    import longwave

    model = longwave.extend(model, "ntk", max_factor=8)   # in place, training-free
    model = longwave.load("my-extended-model")            # what `longwave train` wrote

Every scaling method is a trajectory of frequencies over the length factor t; CLEX (arXiv 2310.16450)
learns one. The names below are imported when they are first used: `import longwave` loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longwave.adapter import load, save
    from longwave.attach import extend, extended, restore, rotaries, set_length, set_policy, snapshot
    from longwave.evaluation.needle import needle
    from longwave.evaluation.passkey import passkey
    from longwave.evaluation.perplexity import perplexity
    from longwave.exporters.run import export
    from longwave.methods import METHODS, parse_method
    from longwave.rope import Rope
    from longwave.schedule import Schedule
    from longwave.training import train
    from longwave.trajectory import Snapshot, Trajectory

__version__ = "0.1.0"

_HOMES = {
    "longwave.adapter": ("load", "save"),
    "longwave.extensions.handle": ("Extension", "extension"),
    "longwave.attach": ("extend", "extended", "restore", "rotaries", "set_length", "set_policy", "snapshot"),
    "longwave.evaluation.needle": ("needle",),
    "longwave.evaluation.passkey": ("passkey",),
    "longwave.evaluation.perplexity": ("perplexity",),
    "longwave.exporters.run": ("export",),
    "longwave.methods": ("METHODS", "parse_method"),
    "longwave.rope": ("Rope",),
    "longwave.schedule": ("Schedule",),
    "longwave.trajectory": ("Snapshot", "Trajectory"),
    "longwave.training": ("train",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Extension",
    "Rope",
    "Schedule",
    "Snapshot",
    "Trajectory",
    "__version__",
    "export",
    "extend",
    "extended",
    "extension",
    "load",
    "needle",
    "parse_method",
    "passkey",
    "perplexity",
    "restore",
    "rotaries",
    "save",
    "set_length",
    "set_policy",
    "snapshot",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'longwave' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
