"""Whether a model has the weights of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from longwave.checkpoints.weights import weight_files
from longwave.layout import INDEX, SINGLE

SAMPLES = 8  # tensors that are compared, evenly spread over the model


def base_named_by(model: Any, network: PreTrainedModel) -> Path | str | None:
    """The base of a training that left the weights alone, by its name.

    Arguments:
        model: what was given to train: a path, which is it, or a model.
        network: the transformers model. PEFT and transformers keep the folder that it was read from.

    Returns:
        None where no folder with these weights is known. They are saved, too, then.
    """
    if isinstance(model, str | Path):
        return model
    place = Path(str(getattr(network, "name_or_path", None) or ""))
    if place == Path() or (not (place / SINGLE).is_file() and not (place / INDEX).is_file()):
        return None
    try:
        compared = require_same_weights(place, network, samples=None)
    except ValueError:
        return None
    return place if compared else None


def require_same_weights(folder: Path, model: nn.Module, samples: int | None = SAMPLES) -> int:
    """A `ValueError` if the weights in a folder are not those of a model, as far as some tensors tell.

    Tensors are compared under the names that both have, in the type of the model.

    Arguments:
        samples: how many tensors of each file are compared, evenly spread; None for all.

    Returns:
        How many tensors were compared. Those that the model has quantized, or on the meta device, are not.
    """
    compared = 0
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in model.named_parameters()}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            shared = [name for name in file.keys() if name in own and own[name].is_floating_point()]  # noqa: SIM118
            for name in shared[:: 1 if samples is None else max(1, len(shared) // samples)]:
                here = own[name].detach()
                if here.is_meta:
                    continue
                there = file.get_tensor(name)
                if not there.is_floating_point():  # quantized in the file
                    continue
                compared += 1
                if there.shape != here.shape or not torch.equal(there.to(here.dtype), here.cpu()):
                    raise ValueError(
                        f"{name} of the model is not that of {folder}: its own weights were changed. Leave base out, "
                        "so that they are saved, too."
                    )
    return compared
