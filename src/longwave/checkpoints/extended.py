"""Read the settings and tensors that `save` wrote, and put them onto the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from longwave.checkpoints.adapters import fill_adapter, read_adapter
from longwave.checkpoints.folder import ModelFolder, require_parts
from longwave.checkpoints.plain import from_pretrained
from longwave.checkpoints.scaled import follow_config
from longwave.checkpoints.trained import hold_trained, read_trained
from longwave.extensions.attach import extend, extend_again
from longwave.extensions.handle import extension, find_extension
from longwave.files import read_json
from longwave.layout import ADAPTERS, CONFIG, MODEL, PROFILES, SETTINGS, WEIGHTS

FORMAT = 2  # 1 had the bounded field start from the prior's rate at t instead of its mean
WITH_ATTENTION = 3  # of a folder with an attention method, which versions before it would leave out
WITH_PARTS = 4  # of a folder with learned scalars, an adapter, or a base that is named
WITH_QUANTIZED = 5  # of a folder whose base is quantized while it is read
HEADS = "heads"  # begins the names of learned scalars
TYPES = {"method": str, "options": dict, "schedule": str}
REQUIRED = ("format", "method", "options", "max_factor", "schedule", "beyond", "log_n", "original_length")


def load_extended(found: ModelFolder, arguments: dict[str, Any]) -> PreTrainedModel:
    read_settings(found.path / SETTINGS)  # before the weights come, which may take long
    found.fetch()
    require_parts(found.path)
    model = extend_as_saved(from_pretrained(found, arguments), found.path)
    vars(model.config).pop(PROFILES, None)  # the extension says more, and a copy of the model has no profiles
    return model


def extend_as_saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the extension in a folder of `save` onto the plain model of that folder."""
    settings = read_settings(folder / SETTINGS)
    trained = read_trained(settings, folder / SETTINGS)
    tensors = _read_tensors(folder / WEIGHTS)
    adapter = settings.get("adapter")
    lora = None if adapter is None else read_adapter(folder / ADAPTERS, adapter)
    if unscaled := settings.get("unscaled", False):
        follow_config(model)
        if find_extension(model) is None:
            raise ValueError(f"{folder / MODEL / CONFIG} lacks the RoPE scaling that {SETTINGS} speaks of.")
    try:
        (extend_again if unscaled else extend)(
            model,
            spec_of(settings),
            max_factor=settings["max_factor"],
            schedule=settings["schedule"],
            log_n=settings["log_n"],
            beyond=settings["beyond"],
            original_length=settings["original_length"],
            head_scalars=settings.get("head_scalars", False),
            adapter=lora,
            **settings["options"],
            **settings.get("attention", {}).get("options", {}),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS}: {error}") from None
    _fill(model, tensors, folder / WEIGHTS)
    if (put := extension(model).adapter) is not None:
        fill_adapter(put, folder / ADAPTERS)
    hold_trained(model, trained)
    return model


def read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    missing = [key for key in REQUIRED if not isinstance(settings, dict) or key not in settings]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: not written by longwave.save, or damaged.")
    if settings["format"] not in range(FORMAT, WITH_QUANTIZED + 1):
        what = "Train again" if settings["format"] == 1 else "Update longwave"
        raise ValueError(
            f"{path} has format {settings['format']}, this version reads {FORMAT} to {WITH_QUANTIZED}. {what}."
        )
    for key, kind in TYPES.items():
        if not isinstance(settings[key], kind):
            what = "a text" if kind is str else "an object"
            raise ValueError(f"{path}: {key} is {settings[key]!r}, it must be {what}. Restore the file.")
    if not isinstance(settings.get("adapter", {}), dict) or not isinstance(settings.get("head_scalars", False), bool):
        raise ValueError(f"{path}: adapter must be an object, and head_scalars true or false. Restore the file.")
    attention = settings.get("attention", {"name": "", "options": {}})
    known = isinstance(attention, dict) and isinstance(attention.get("name"), str)
    if not (known and isinstance(attention.get("options"), dict)):
        raise ValueError(f"{path}: attention is {attention!r}, it must have a name and options. Restore the file.")
    return settings


def spec_of(settings: dict[str, Any]) -> str:
    """The scaling method, and the attention method where there is one: `yarn`, `linear+two-band`."""
    attention = settings.get("attention")
    return str(settings["method"]) if attention is None else f"{settings['method']}+{attention['name']}"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder is incomplete. Save the model again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it or save the model again.") from None


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Put the weights in their places, all of them and nothing else."""
    own = extension(model).trajectories
    expected = {f"{index}.rope": trajectory.rope.inv_freq for index, trajectory in enumerate(own)}
    for index, trajectory in enumerate(own):
        expected |= {f"{index}.{name}": tensor for name, tensor in trajectory.state_dict().items()}
    heads = extension(model).heads
    scalars = {} if heads is None else heads.state_dict()
    expected |= {f"{HEADS}.{name}": tensor for name, tensor in scalars.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ValueError(f"{path} holds other tensors than {SETTINGS} describes. Was it copied from another folder?")
    if heads is not None:
        heads.load_state_dict({name: tensors[f"{HEADS}.{name}"] for name in scalars})
    for index, trajectory in enumerate(own):
        expects = trajectory.rope.inv_freq  # a file of another writer may hold float32
        if not torch.allclose(tensors[f"{index}.rope"].to(expects), expects, rtol=1e-6, atol=0):
            raise ValueError(f"{path} was made for other rotary frequencies than those of {path.parent / MODEL}.")
        prefix = f"{index}."
        state = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        del state["rope"]
        trajectory.load_state_dict(state)
