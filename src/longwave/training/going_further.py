"""Training that goes on from an extended model: what it takes from it, and what it leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from longwave.checkpoints.extended import read_settings, spec_of
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.extensions.handle import Extension
from longwave.extensions.spec import parse_spec
from longwave.files import read_object
from longwave.layout import SETTINGS, TRAINING

logger = logging.getLogger("longwave")


def with_own_method(model: str | Path | ModelFolder | nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as given. Where they name no method and the model is a folder of an extended one, with its method.

    A folder that was trained for other engines (`engine_ready`) is trained further for them.
    """
    if given.get("method") is not None or isinstance(model, nn.Module):
        return dict(given)
    found = resolve(model)
    if found.kind is not Kind.LONGWAVE:
        return dict(given)
    own = parse_spec(spec_of(read_settings(found.path / SETTINGS)))
    taken = {name: value for name, value in given.items() if value is not None}
    if own.attention is not None:
        return taken if given.get("engine_ready") else {"method": own.name, **taken}
    record = found.path / TRAINING
    config = read_object(record).get("config") if record.is_file() else None
    ready = isinstance(config, dict) and config.get("engine_ready") is True
    return {"method": own.name, **({"engine_ready": True} if ready else {}), **taken}


def tell_what_is_left(handle: Extension, method: str) -> None:
    """Warn of what a model has learned under another method: the new one starts without it."""
    learned = ["frequencies"] if any(list(each.parameters()) for each in handle.trajectories) else []
    learned += [] if handle.heads is None else ["scalars of heads"]
    learned += [] if handle.adapter is None else ["LoRA"]
    if learned:
        logger.warning(
            "the model's %s were learned under %s and are left behind: %s starts from its weights. Train with --method "
            "%s to take them further.", " and ".join(learned), handle.spec, method, handle.spec,
        )  # fmt: skip
