"""Checkpoints in the format of the official CLEX code.

Source: github.com/DAMO-NLP-SG/CLEX. The config has `rope_scaling = {"type": "clex", ...}`, the field
lies among the model's weights as `...clex_layer.proj_func.ode_up_proj` and `...ode_down_proj`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from longwave.checkpoints.config import ConfigFile
from longwave.extensions.attach import extend
from longwave.extensions.handle import extension
from longwave.files import read_object
from longwave.layout import CONFIG
from longwave.methods.clex import CLEX
from longwave.rules import is_positive

UP, DOWN, FREQUENCIES = "proj_func.ode_up_proj", "proj_func.ode_down_proj", "clex_layer.inv_freq"


@dataclass(frozen=True, eq=False)
class LegacyCheckpoint:
    """The contents of the folder beyond the plain model.

    Arguments:
        folder: where the checkpoint came from, for messages.
        config: of the plain model.
        extension: arguments of `extend`.
        weights: tensors of the CLEX layer by the end of their names.
    """

    folder: Path
    config: PreTrainedConfig
    extension: dict[str, Any]
    weights: dict[str, Tensor]


def read_legacy(folder: Path) -> LegacyCheckpoint:
    """Read config and field. The method is `clex-paper` under its ceiling schedule; `log_scale` is per-query log-n.

    Raises:
        ValueError: naming the incomplete file.
    """
    extension, fields = read_fields(folder)
    file = ConfigFile(folder, fields)
    file.check()
    with file.explained():
        config = AutoConfig.for_model(**fields)
    return LegacyCheckpoint(folder, config, extension, _field_weights(folder))


def read_fields(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `extend`, and the fields of the plain model's config."""
    path = folder / CONFIG
    fields = read_object(path)
    scaling = fields.pop("rope_scaling")
    numbers = [scaling.get(name) for name in ("max_factor", "param_factor")]
    if "model_type" not in fields or not all(map(is_positive, numbers)):
        raise ValueError(
            f"{path}: a CLEX config needs model_type, and rope_scaling with the numbers max_factor and param_factor."
        )
    extension = {
        "method": "clex-paper",
        "max_factor": float(scaling["max_factor"]),
        "amplification": float(scaling["param_factor"]),
        # version 1 of the code had SiLU built in and no key for it, version 2 requires the key
        "activation": scaling.get("act", "silu"),
        "log_n": bool(fields.pop("log_scale", False)),
    }
    fields.pop("auto_map", None)  # the official modelling code, which this replaces
    return extension, fields


def extend_legacy(model: PreTrainedModel, checkpoint: LegacyCheckpoint) -> PreTrainedModel:
    """Extend the plain model by the checkpoint's trajectory.

    The trajectory starts from the model's own frequencies. The checkpoint's copy of them is a buffer, and in the
    released checkpoints `.to(bfloat16)` has rounded it (0.4 %).

    Raises:
        ValueError: if the field's shape or the frequencies are not what the config asks for.
    """
    extend(model, **checkpoint.extension)
    for trajectory in extension(model).trajectories:
        assert isinstance(trajectory, CLEX)
        _fill(trajectory, checkpoint)
    return model


def _field_weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                for end in (UP, DOWN, FREQUENCIES):
                    found.update((end, file.get_tensor(name)) for name in names if name.endswith(end))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}). Download it again.") from None
    if UP not in found or DOWN not in found:
        raise ValueError(
            f"{folder} has no clex_layer.{UP} and {DOWN} in *.safetensors. "
            "Convert a pytorch_model.bin to safetensors first."
        )
    return found


def _fill(trajectory: CLEX, checkpoint: LegacyCheckpoint) -> None:
    folder, weights, field = checkpoint.folder, checkpoint.weights, trajectory.field
    for own, name in ((field.up_proj, UP), (field.down_proj, DOWN)):
        if own.shape != weights[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(weights[name].shape)}, config.json asks for {tuple(own.shape)}."
            )
    published = weights.get(FREQUENCIES, trajectory.rope.inv_freq).double()
    if not torch.allclose(published, trajectory.rope.inv_freq, rtol=0.01, atol=0):
        raise ValueError(f"{folder}: {FREQUENCIES} is not what rope_theta in config.json gives.")
    with torch.no_grad():
        field.up_proj.copy_(weights[UP])
        field.down_proj.copy_(weights[DOWN])
