"""Checkpoints in the format of the official CLEX code.

Source: github.com/DAMO-NLP-SG/CLEX. The config has `rope_scaling = {"type": "clex", ...}`, the field
lies among the model's weights as `...clex_layer.proj_func.ode_up_proj` and `...ode_down_proj`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from longwave.attach import extend, rotaries
from longwave.io import read_json
from longwave.methods.clex import CLEX

UP, DOWN, FREQUENCIES = "proj_func.ode_up_proj", "proj_func.ode_down_proj", "clex_layer.inv_freq"


def is_legacy(folder: Path) -> bool:
    """Whether the folder's config asks for CLEX as the official code writes it."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    scaling = read_json(path).get("rope_scaling")
    return isinstance(scaling, dict) and scaling.get("type", scaling.get("rope_type")) == "clex"


def load_legacy(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model extended as published: `clex-paper` under the ceiling schedule, at the integer t of the paper.

    `log_scale` becomes the per-query log-n. The model's own frequencies are kept: the checkpoint's copy
    is a buffer that `.to(bfloat16)` has rounded (0.4 %) in released checkpoints.

    Raises:
        ValueError: naming the file that lacks something or does not fit the model.
    """
    path = folder / "config.json"
    fields = read_json(path)
    scaling = fields.pop("rope_scaling")
    log_scale = bool(fields.pop("log_scale", False))
    fields.pop("auto_map", None)  # the official modelling code, which this replaces
    missing = [key for key in ("max_factor", "param_factor") if key not in scaling]
    if missing or "model_type" not in fields:
        raise ValueError(f"{path}: a CLEX config needs model_type and rope_scaling with max_factor and param_factor.")
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    weights = _field_weights(folder)
    model = _plain_model(folder, config, arguments)
    extend(
        model,
        "clex-paper",
        max_factor=float(scaling["max_factor"]),
        log_n=log_scale,
        amplification=float(scaling["param_factor"]),
        # version 1 of the code had SiLU built in and no key for it, version 2 requires the key
        activation=scaling.get("act", "silu"),
    )
    for trajectory in dict.fromkeys(rotary.trajectory for rotary in rotaries(model)):
        assert isinstance(trajectory, CLEX)
        _fill(trajectory, weights, folder)
    return model


def _field_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the CLEX layer by the end of their names; they belong to no layer in particular."""
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


def _plain_model(folder: Path, config: Any, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model without its CLEX layer, whose tensors transformers would report as unexpected."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, output_loading_info=True, **arguments
        )
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])} ...")
    return model


def _fill(trajectory: CLEX, weights: dict[str, Tensor], folder: Path) -> None:
    field = trajectory.field
    for own, name in ((field.up_proj, UP), (field.down_proj, DOWN)):
        if own.shape != weights[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(weights[name].shape)}, the config asks for {tuple(own.shape)}."
            )
    published = weights.get(FREQUENCIES)
    own_inv_freq = trajectory.rope.inv_freq
    if published is not None and not torch.allclose(published.double(), own_inv_freq, rtol=0.01, atol=0):
        raise ValueError(f"{folder}: {FREQUENCIES} is not what rope_theta in config.json gives.")
    with torch.no_grad():
        field.up_proj.copy_(weights[UP])
        field.down_proj.copy_(weights[DOWN])
