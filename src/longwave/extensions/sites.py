"""Find the rotary modules of a model; say how a model without a rotary module encodes positions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.standin import frequency_name, undecorated_forward
from longwave.rope import Rope
from longwave.schedule import tokens_at

# Layers that attend within a window never see a longer distance: their rotation stays as it is.
LOCAL = ("sliding", "chunked", "local")

# The set of frequencies to scale, for models with several sets whose layers are not local by name.
# DeepSeek-V4: `main` is rotated in the sliding-window layers only.
GLOBAL_LAYER_TYPE = {"deepseek_v4": "compress"}

# What a model has instead of a rotary module, by the last part of a module's, parameter's or buffer's name.
OTHER_POSITIONS = {
    "wpe": "learned absolute positions (wpe)",
    "positions_embed": "learned absolute positions (positions_embed)",
    "position_embeddings": "learned absolute positions (position_embeddings)",
    "embed_positions": "absolute positions (embed_positions)",
    "pos_encoding": "absolute positions (pos_encoding)",
    "position_bias": "relative position biases (position_bias)",
    "r_r_bias": "relative positions (r_r_bias)",
    "rel_logits_proj": "relative positions (rel_logits_proj)",
}
# Types of RoPE scaling that turn by the same frequencies at every length.
STATIC = ("linear", "llama3", "proportional", "yarn")
ALIBI = ("bloom", "mpt")
ROTATES_INSIDE_ATTENTION = ("gptj", "codegen", "roformer")


@dataclass(frozen=True, eq=False)
class Site:
    """One rotary module of a model and every place that refers to it.

    Arguments:
        module: the model's own rotary module.
        owners: (parent, attribute) of each reference.
        layer_type: which of the module's frequencies to scale; None where it has one set.
    """

    module: nn.Module
    owners: tuple[tuple[nn.Module, str], ...]
    layer_type: str | None


def host_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be wrapped (PEFT, torch.compile)."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"expected a transformers model, got {type(model).__name__}.")


def find_sites(model: nn.Module) -> list[Site]:
    """Every rotary module of the text model that scales with the context.

    Raises:
        ValueError: if there is none, saying how the model encodes positions instead; or if the model is extended.
    """
    host = host_of(model)
    if any(isinstance(module, ScaledRotary) for module in model.modules()):  # a part of an extended model
        raise ValueError("the model is already extended. Call longwave.restore on the whole model first.")
    text = host.config.get_text_config(decoder=True)
    sites = []
    for module, owners in _owners(model):
        config = getattr(module, "config", text)  # a vision tower's rotary module has the vision config
        if not isinstance(config, type(text)) or not _is_rotary(module):
            continue
        layer_types = _global_layer_types(module)
        if layer_types and not _has_alibi(text):  # Falcon builds the module in either case
            sites.append(Site(module, owners, _choose(layer_types, text)))
    if not sites:
        raise ValueError(
            f"{type(host).__name__} has no rotary module to extend: it has {describe_positions(host)}. "
            "Choose a model whose positions are rotary embeddings in a module of their own."
        )
    return sites


def rope_at(site: Site, config: PreTrainedConfig, original_length: int | None = None) -> Rope:
    """The rope of the module's pre-training; frequencies are read from the module, never recomputed from a base."""
    own = _pretrained_frequencies(site.module, site.layer_type).detach()
    if own.dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"the model's rotary frequencies are rounded to {own.dtype} (up to 0.4 %). Load it with dtype= instead of "
            "casting it, or extend it before the cast.",
            stacklevel=3,
        )
    turning = own[own > 0]  # `proportional` ropes end in pairs that do not turn
    config = getattr(site.module, "config", config)
    parameters = _rope_parameters(config, site.layer_type)
    length = original_length or _trained_length(config, parameters)
    return Rope(turning, length, parameters.get("rope_theta"))


def reset_frequencies(module: nn.Module, layer_type: str | None) -> None:
    """Put a `dynamic` or `longrope` module back to z(1): a long forward has written other frequencies into it."""
    pretrained = _pretrained_frequencies(module, layer_type)
    name = frequency_name(layer_type)
    if pretrained is not getattr(module, name):
        setattr(module, name, pretrained.clone())
        # a dynamic module computes its frequencies anew only for lengths over this
        module.max_seq_len_cached = module.original_max_seq_len
        vars(module).pop(f"{layer_type}_max_seq_len_cached", None)


def _pretrained_frequencies(module: nn.Module, layer_type: str | None) -> Tensor:
    """The frequencies in use; if transformers overwrites these in a forward, the original ones that it keeps."""
    used: Tensor = getattr(module, frequency_name(layer_type))
    rope_type = getattr(module, "rope_type", "")
    if isinstance(rope_type, dict):
        rope_type = rope_type[layer_type]
    if not any(word in rope_type for word in ("dynamic", "longrope")):
        return used
    original: Tensor = getattr(module, frequency_name(layer_type, "original_inv_freq"), used)
    return original


def describe_positions(model: PreTrainedModel) -> str:
    """How a model without rotary module knows positions, for error messages."""
    config = model.config.get_text_config(decoder=True)
    if config.model_type in ROTATES_INSIDE_ATTENTION:
        return "rotary positions computed inside its attention, without a module"
    if _has_alibi(config):
        return "ALiBi biases (no position embedding)"
    if any(_is_rotary(module) for module in model.modules()):
        return "rotary positions in sliding-window layers only, which no context length reaches"
    named = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    names = {name.rpartition(".")[2] for name, _ in named}
    for name, description in OTHER_POSITIONS.items():
        if name in names:
            return description
    return "no position embedding that could be scaled"


def _has_alibi(config: PreTrainedConfig) -> bool:
    return config.model_type in ALIBI or bool(getattr(config, "alibi", False))


def _owners(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[tuple[nn.Module, str], ...]]]:
    """Each distinct sub-module with all its (parent, attribute) references, in the order of the model."""
    found: dict[int, tuple[nn.Module, list[tuple[nn.Module, str]]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():  # named_children would skip a second name
            if child is not None:
                found.setdefault(id(child), (child, []))[1].append((parent, name))
    for module, owners in found.values():
        yield module, tuple(owners)


def _is_rotary(module: nn.Module) -> bool:
    """Whether the module has frequencies, and a forward that turns position ids by them."""
    if not any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
        return False
    return "position_ids" in inspect.signature(undecorated_forward(module)).parameters


def _global_layer_types(module: nn.Module) -> list[str | None]:
    names = [name for name, _ in module.named_buffers(recurse=False)]
    if "inv_freq" in names:
        return [None]
    kept = [name for name in names if f"{name.removesuffix('inv_freq')}original_inv_freq" in names]
    layer_types = [name.removesuffix("_inv_freq") for name in kept]
    return [layer_type for layer_type in layer_types if not any(word in layer_type for word in LOCAL)]


def _choose(layer_types: list[str | None], config: PreTrainedConfig) -> str | None:
    if len(layer_types) == 1:
        return layer_types[0]
    if config.model_type not in GLOBAL_LAYER_TYPE:
        raise ValueError(
            f"{config.model_type} has rotary frequencies for {', '.join(map(str, layer_types))}; which one serves "
            "the whole context is unknown. Add the model to longwave.extensions.sites.GLOBAL_LAYER_TYPE."
        )
    return GLOBAL_LAYER_TYPE[config.model_type]


def _rope_parameters(config: PreTrainedConfig, layer_type: str | None) -> dict:
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return {}
    nested = parameters.get(layer_type) if layer_type is not None else None
    return nested if isinstance(nested, dict) else parameters


def _trained_length(config: PreTrainedConfig, parameters: dict) -> int:
    """L in tokens of the frequencies that the module holds.

    A longrope model's own frequencies are its short ones, good for its original length. The frequencies of a static
    scaling are good for the whole reach of the config, which may exceed max_position_embeddings (Qwen's YaRN).
    """
    kind, original = parameters.get("rope_type"), parameters.get("original_max_position_embeddings")
    if kind == "longrope" and original:
        return int(original)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "model_max_length", None)
    if not isinstance(length, int):
        raise ValueError(
            f"the config of {config.model_type} does not say how long its training context was. "
            "Pass original_length, in tokens."
        )
    if kind in STATIC and original and parameters.get("factor"):
        return max(length, tokens_at(parameters["factor"], original))
    return length
