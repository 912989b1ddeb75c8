"""A model without its weights: enough to say what can be measured or exported of it, and what not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from longwave.checkpoints.extended import extend_as_saved
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.official import LegacyCheckpoint, extend_legacy, read_legacy
from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.scaled import follow_config
from longwave.checkpoints.weights import Contents, check_parameters, check_weights
from longwave.files import read_json
from longwave.layout import CONFIG, INDEX, PROFILES, SINGLE


@dataclass(frozen=True, eq=False)
class Outline:
    """A model whose parameters are on the meta device. Its shapes and frequencies are real.

    Arguments:
        folder: where its files are.
        plain: the plain model.
        config: config.json of the plain model, as written there.
        official: config and field of a CLEX checkpoint in the official format.
    """

    folder: ModelFolder
    plain: PreTrainedModel
    config: dict[str, Any]
    official: LegacyCheckpoint | None = None

    @property
    def dropped(self) -> tuple[str, ...]:
        """Endings of tensor names that are no part of the plain model (the layer of an official checkpoint)."""
        return () if self.official is None else tuple(self.official.weights)

    def check(self) -> Contents:
        """Compare the headers of the safetensors files with the model.

        Raises:
            ValueError: naming the file that is damaged, missing, or does not belong to the model.
        """
        check_weights(self.folder.model)
        return check_parameters(self.folder.model, self.plain, self.dropped)

    def extended(self) -> PreTrainedModel:
        """The model with the extension that its folder speaks of, put onto `plain` itself."""
        if self.folder.kind is Kind.LONGWAVE:
            return extend_as_saved(self.plain, self.folder.fetch().path).eval()
        if self.official is not None:
            return extend_legacy(self.plain, self.official).eval()
        return follow_config(self.plain).eval()


def read_outline(found: ModelFolder) -> Outline:
    """The outline of a model that longwave can load.

    Raises:
        ValueError: naming the file that is damaged, or the value of a config that cannot be.
    """
    if found.kind is Kind.OFFICIAL:
        official = read_legacy(found.fetch().path)
        config = official.config.to_dict()
        return Outline(found, skeleton(found.model, official.config), config, official)
    config = read_json(found.model / CONFIG)
    config.pop(PROFILES, None)  # those of an export, which is the plain model here
    return Outline(found, skeleton(found.model), config)


def outline(path: Path | str | ModelFolder) -> PreTrainedModel | None:
    """The model that `longwave.load` would read, with parameters on the meta device and real frequencies.

    The headers of a folder's safetensors files are read. Damaged or missing files are found now, and not when the
    turn of the model comes.

    Returns:
        None for a model that only `load` can read or refuse.

    Raises:
        ValueError: naming the file that is damaged, missing, or does not belong to the model.
    """
    try:
        found = resolve(path)
    except ValueError:
        return None
    if found.refusal() is not None:
        return None
    try:
        read = read_outline(found)
    except ValueError:
        return None
    if not found.where:  # of a model on a hub, the weights may not be here yet
        if any((found.model / name).is_file() for name in (SINGLE, INDEX)):
            read.check()
        elif not any(found.model.glob("*.bin")):
            return None
    return read.extended()
