"""A model without its weights: enough to say what can be measured of it, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.hub import cached_file

from longwave.checkpoints.extended import extend_as_saved
from longwave.checkpoints.folder import MODEL, SETTINGS, WEIGHTS
from longwave.checkpoints.official import extend_legacy, is_legacy, read_legacy
from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.scaled import follow_config
from longwave.checkpoints.weights import INDEX, SINGLE, check_parameters, check_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outline(path: str) -> PreTrainedModel | None:
    """The model that `longwave.load` would read, its parameters on the meta device, its frequencies real.

    The headers of a folder's safetensors files are read: what is damaged or lacking is found now, and not when the
    model's turn comes.

    Returns:
        None for what only `load` can read, or say what is wrong with.

    Raises:
        ValueError: naming the file that is damaged, missing, or does not belong to the model.
    """
    folder = _folder(path)
    own = (folder / SETTINGS).is_file()
    place = folder / MODEL if own else folder
    incomplete = not own and ((folder / WEIGHTS).exists() or (folder / MODEL).is_dir())
    if incomplete or not (place / "config.json").is_file():
        return None
    legacy = not own and is_legacy(folder)
    try:
        checkpoint = read_legacy(folder) if legacy else None
        plain = skeleton(place, None if checkpoint is None else checkpoint.config)
    except ValueError:
        return None
    if Path(path).is_dir():  # of a model on a hub, the weights may not be here yet
        if any((place / name).is_file() for name in (SINGLE, INDEX)):
            check_weights(place)
            check_parameters(place, plain, () if checkpoint is None else tuple(checkpoint.weights))
        elif not any(place.glob("*.bin")):
            return None
    if own:
        return extend_as_saved(plain, folder).eval()
    return (follow_config(plain) if checkpoint is None else extend_legacy(plain, checkpoint)).eval()


def _folder(path: str) -> Path:
    """The folder, or where the files of a model on a hub are kept."""
    if Path(path).exists():
        return Path(path)
    try:
        config = cached_file(path, "config.json")
    except (OSError, ValueError):
        config = None
    return Path(path) if config is None else Path(config).parent
