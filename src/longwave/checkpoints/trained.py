"""The longest real window that a model was trained on: at a longer one, what it does is extrapolation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from longwave.extensions.handle import find_extension
from longwave.extensions.reach import original_length_of
from longwave.extensions.sites import host_of
from longwave.outside import Outside
from longwave.provenance import training_of
from longwave.schedule import tokens_at

WHOLE, WEIGHTS = "trained_length", "weights_trained_length"  # in longwave.json; the first in records, too
HELD = "_longwave_trained_length"  # on the extension, and on the transformers model for its weights


@dataclass(frozen=True)
class Trained:
    """The longest real windows that a model was trained on, in tokens. Pre-training counts: at least L. None: unknown.

    Arguments:
        length: with the extension that the model has.
        weights: the model's weights alone, which are what another extension runs on.
    """

    length: int | None
    weights: int | None

    def further(self, longest: int, *, weights: bool) -> Trained:
        """After a training on real windows of up to `longest` tokens, of the weights too or of the extension alone."""
        return Trained(_longer(self.length, longest), _longer(self.weights, longest) if weights else self.weights)

    def to_json(self) -> dict[str, int | None]:
        """The entries of longwave.json."""
        return {WHOLE: self.length, WEIGHTS: self.weights}


def trained_of(model: nn.Module) -> Trained:
    """What is known of a model. A model that `longwave` did not train has seen windows of L."""
    original, handle = original_length_of(model), find_extension(model)
    weights = _longer(vars(host_of(model)).get(HELD, original), original)
    whole = weights if handle is None else _longer(vars(handle).get(HELD, weights), original)
    return Trained(whole, weights)


def hold_trained(model: nn.Module, trained: Trained) -> None:
    """Let an extended model know. The extension takes its own length along when it is taken off."""
    vars(host_of(model))[HELD] = trained.weights
    if (handle := find_extension(model)) is not None:
        vars(handle)[HELD] = trained.length


def read_trained(settings: Mapping[str, Any], path: Path) -> Trained:
    """The lengths in a longwave.json; of an older one, those that the training.json beside it allows.

    Arguments:
        settings: the contents of the file.
        path: the file.

    Raises:
        ValueError: naming the file and the entry that is no number of tokens.
    """
    if WHOLE not in settings:
        return _before(path.parent, settings["original_length"])
    outside = Outside(path, "Restore the file.")
    outside.counts(settings, [key for key in (WHOLE, WEIGHTS) if settings.get(key) is not None])
    return Trained(settings[WHOLE], settings.get(WEIGHTS))


def _before(folder: Path, original_length: int) -> Trained:
    """Of a folder that knows no lengths. Its train_length was the length of a row, whatever real windows there were."""
    try:
        config = (training_of(folder) or {}).get("config") or {}
        row, rows = int(config["train_length"]), int(config["batch_size"])
        room = tokens_at(config["train_factor"] or config["max_factor"], original_length) // row
        multiples = [m for m in range(1, min(rows, room) + 1) if rows % m == 0] if config["long_share"] else []
        longest = max(original_length, row * max([1, *multiples]))
        return Trained(longest, original_length if config["freeze_weights"] else longest)
    except (KeyError, TypeError, ValueError):  # no record of a training, or one that does not tell
        return Trained(None, None)


def _longer(known: int | None, longest: int) -> int | None:
    return None if known is None else max(known, longest)
