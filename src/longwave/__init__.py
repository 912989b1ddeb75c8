"""longwave: context extension for RoPE language models.

    import longwave

    model = longwave.extend(model, "ntk", max_factor=8)   # in place, training-free
    model = longwave.load("my-extended-model")            # what `longwave train` wrote

Every scaling method is a trajectory of frequencies over the length factor t; CLEX (arXiv 2310.16450)
learns one. The names below are imported when they are first used: `import longwave` loads nothing.
Type checkers read the same names in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "longwave.attention": ("ATTENTIONS", "Attention", "Band"),
    "longwave.checkpoints.load": ("load",),
    "longwave.checkpoints.merge": ("merge",),
    "longwave.checkpoints.save": ("save",),
    "longwave.evaluation.losses": ("LengthLoss", "Perplexity"),
    "longwave.evaluation.needle": ("needle",),
    "longwave.evaluation.passkey": ("passkey",),
    "longwave.evaluation.perplexity": ("perplexity",),
    "longwave.evaluation.retrieval": ("LengthRetrieval", "Retrieval"),
    "longwave.exporters.exported": ("Exported",),
    "longwave.exporters.run": ("export",),
    "longwave.extensions.attach": ("extend", "extended", "restore", "suspended"),
    "longwave.extensions.conversation": ("Conversation",),
    "longwave.extensions.handle": ("Extension", "extension", "rotaries"),
    "longwave.extensions.policy": ("frozen", "set_length", "set_policy", "snapshot"),
    "longwave.extensions.spec": ("Spec", "parse_spec"),
    "longwave.methods": ("METHODS", "Method", "parse_method"),
    "longwave.rope": ("Rope",),
    "longwave.schedule": ("Ceiling", "Continuous", "Schedule", "Static", "Steps", "Threshold", "parse_schedule"),
    "longwave.training.config": ("TrainConfig",),
    "longwave.training.drawn": ("drawn_lengths",),
    "longwave.training.frozen": ("unfreeze",),
    "longwave.training.run": ("train",),
    "longwave.trajectory": ("Snapshot", "Trajectory"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'longwave' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
