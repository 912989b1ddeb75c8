"""A model without its weights. It is enough to say what can be measured with the model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from longwave.checkpoints.extended import extend_as_saved
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.official import extend_legacy, read_legacy
from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.scaled import follow_config
from longwave.checkpoints.weights import INDEX, SINGLE, check_parameters, check_weights


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
    official = found.kind is Kind.OFFICIAL
    try:
        checkpoint = read_legacy(found.fetch().path) if official else None
        plain = skeleton(found.model, None if checkpoint is None else checkpoint.config)
    except ValueError:
        return None
    if not found.where:  # of a model on a hub, the weights may not be here yet
        if any((found.model / name).is_file() for name in (SINGLE, INDEX)):
            check_weights(found.model)
            check_parameters(found.model, plain, () if checkpoint is None else tuple(checkpoint.weights))
        elif not any(found.model.glob("*.bin")):
            return None
    if found.kind is Kind.LONGWAVE:
        return extend_as_saved(plain, found.fetch().path).eval()
    return (follow_config(plain) if checkpoint is None else extend_legacy(plain, checkpoint)).eval()
