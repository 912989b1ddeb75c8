"""Whether a model has the weights of a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from longwave.checkpoints.weights import weight_files

SAMPLES = 8  # tensors that are compared, evenly spread over the model


def require_same_weights(folder: Path, model: nn.Module) -> None:
    """A `ValueError` if the weights in a folder are not those of a model, as far as some tensors tell.

    Tensors are compared under the names that both have, in the type of the model.
    """
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in model.named_parameters()}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            shared = [name for name in file.keys() if name in own and own[name].is_floating_point()]  # noqa: SIM118
            for name in shared[:: max(1, len(shared) // SAMPLES)]:
                there, here = file.get_tensor(name), own[name].detach().cpu()
                if here.is_meta or there.shape != here.shape or not there.is_floating_point():
                    continue
                if not torch.equal(there.to(here.dtype), here):
                    raise ValueError(
                        f"{name} of the model is not that of {folder}: its own weights were changed. Leave base out, "
                        "so that they are saved, too."
                    )
