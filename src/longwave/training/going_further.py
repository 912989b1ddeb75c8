"""Training that goes on from an extended model: what it takes from it, and what it leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from longwave.checkpoints.extended import read_settings, spec_of
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.extensions.handle import Extension, find_extension
from longwave.extensions.spec import parse_spec
from longwave.files import read_object
from longwave.layout import SETTINGS, TRAINING

logger = logging.getLogger("longwave")


def with_own_method(
    model: str | Path | ModelFolder | nn.Module, given: Mapping[str, Any], recorded: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings that are given. Where they name no method and the model is extended, with its own.

    A folder that `engine_ready` has written is trained further so.

    Arguments:
        recorded: the settings of the run that is resumed: its method comes before the model's.
    """
    taken = {name: value for name, value in given.items() if value is not None}
    own = None if "method" in taken else _own_spec(model)
    if own is None:
        return taken
    if recorded is not None and "method" in recorded:
        return {**{name: recorded[name] for name in ("method", "engine_ready") if name in recorded}, **taken}
    spec = parse_spec(own)
    if spec.attention is not None and taken.get("engine_ready"):
        return taken  # what other engines run has no attention method
    return {"method": spec.name, **({"engine_ready": True} if _is_engine_ready(model) else {}), **taken}


def _own_spec(model: str | Path | ModelFolder | nn.Module) -> str | None:
    """The method of an extended model; None for a plain one, also where its config scales its positions."""
    if isinstance(model, nn.Module):
        handle = find_extension(model) if isinstance(model, PreTrainedModel) else None
        return None if handle is None or handle.unscaled else handle.spec
    found = resolve(model)
    return spec_of(read_settings(found.path / SETTINGS)) if found.kind is Kind.LONGWAVE else None


def _is_engine_ready(model: str | Path | ModelFolder | nn.Module) -> bool:
    record = None if isinstance(model, nn.Module) else resolve(model).path / TRAINING
    config = read_object(record).get("config") if record is not None and record.is_file() else None
    return isinstance(config, dict) and config.get("engine_ready") is True


def tell_what_is_left(handle: Extension, method: str) -> None:
    """Warn of what a model has learned under another method: the new one starts without it."""
    learned = ["frequencies"] if any(list(each.parameters()) for each in handle.trajectories) else []
    learned += [] if handle.heads is None else ["scalars of heads"]
    learned += [] if handle.adapter is None else ["LoRA"]
    if learned:
        logger.warning(
            "the model's %s were learned under %s and are left behind: %s starts from the base. Train with --method "
            "%s to take them further.", " and ".join(learned), handle.spec, method, handle.spec,
        )  # fmt: skip
