"""Adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longwave.extensions.adapter import Adapter, LoRA
from longwave.extensions.foreign import UNKNOWN
from longwave.extensions.gate import CAPPED
from longwave.files import read_object, write_json
from longwave.layout import ADAPTER, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from peft import LoraConfig


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# Keys of adapter_config.json, what they may be, and the words for it. Another kind of adapter would run as this one.
PLAIN_LORA: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("peft_type", lambda value: value == "LORA", "'LORA'"),
    ("r", _is_count, "a whole number >= 1"),
    ("lora_alpha", lambda value: isinstance(value, int | float), "a number"),
    ("target_modules", lambda value: isinstance(value, list) and bool(value), "names of layers"),
    ("bias", lambda value: value == "none", "'none'"),
    ("use_dora", lambda value: not value, "false"),
)


def save_adapter(adapter: Adapter, folder: Path, base: str | None) -> None:
    """Write the adapter so that PEFT reads it, too: PEFT's model is the extended one where g(t) = 1.

    Arguments:
        base: the model's folder or name on the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{ADAPTER_WEIGHTS}"
    save_file({name: tensor.contiguous().cpu() for name, tensor in _state(adapter).items()}, partial)
    os.replace(partial, folder / ADAPTER_WEIGHTS)
    settings: dict[str, Any] = adapter.config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / ADAPTER, {name: _plain(value) for name, value in settings.items()})


def read_adapter(folder: Path, settings: dict[str, Any]) -> LoRA:
    """What `save_adapter` wrote, without the weights.

    Arguments:
        settings: of the gate.

    Raises:
        ValueError: naming the damaged file.
    """
    from peft import LoraConfig

    path = folder / ADAPTER
    found = read_object(path)
    factor, gate = settings.get("trained_factor"), settings.get("gate", CAPPED)
    if not isinstance(factor, int | float) or isinstance(factor, bool):
        raise ValueError(f"{folder.parent}: the adapter's trained_factor is {factor!r}, it must be a number.")
    for name, is_right, what in PLAIN_LORA:
        if not is_right(found.get(name)):
            raise ValueError(
                f"{path}: {name} is {found.get(name)!r}, longwave saved {what}. Restore it, or save the model again."
            )
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}. Restore it, or save the model again.") from None
    for name in UNKNOWN:
        if getattr(config, name, None) not in (None, False, "none", [], {}):
            raise ValueError(f"{path} has {name}, which an adapter of longwave cannot have. Train it without.")
    config.inference_mode = False
    return LoRA(max(1, config.r), float(factor), gate=gate, config=config)


@torch.no_grad()
def fill_adapter(adapter: Adapter, folder: Path) -> None:
    """Read the weights, all of them and nothing else.

    Raises:
        ValueError: for a damaged file, or one of another model.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). Restore it, or save the model again.") from None
    own = _state(adapter)
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError(f"{path} holds other tensors than its model has. Was it copied from another folder?")
    for name, tensor in own.items():
        if not tensor.is_meta:
            tensor.copy_(found[name])


@torch.no_grad()
def read_delta(adapter: Adapter, place: int, t: float, file: Path, path: str) -> Tensor:
    """g(t)·ΔW of one layer, float32, whose weights are read for the moment; the adapter itself has none (`meta`).

    Arguments:
        place: of the layer among the adapter's.
        file: that `save_adapter` wrote.
        path: name of the layer in the plain model.
    """
    layer = adapter.places[place][2]
    parts = layer.lora_A[adapter.name], layer.lora_B[adapter.name]
    before = [part.weight for part in parts]
    try:
        with safe_open(file, framework="pt") as held:
            for part, name in zip(parts, ("lora_A", "lora_B"), strict=True):
                weight = held.get_tensor(f"base_model.model.{path}.{name}.weight").float()
                part.weight = torch.nn.Parameter(weight, requires_grad=False)
        return adapter.delta(place, t)
    finally:
        for part, weight in zip(parts, before, strict=True):
            part.weight = weight


def _state(adapter: Adapter) -> dict[str, Tensor]:
    """The weights under the names that PEFT gives them."""
    names = {id(parameter): name for name, parameter in adapter.host.named_parameters()}
    return {
        f"base_model.model.{names[id(parameter)].replace(f'.{adapter.name}.', '.')}": parameter.detach()
        for parameter in adapter.parameters()
    }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, set | frozenset | tuple):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    return getattr(value, "value", value)
