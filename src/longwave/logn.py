"""Per-query log-n attention scaling, through the attention interface of transformers.

q_p <- q_p · max(1, ln(p + 1) / ln L)^exponent for the query at position p: attention over n keys
keeps its entropy as n grows beyond L (YaRN calls a constant form of it a temperature). Below L the
factor is exactly 1. cos and sin are shared by queries and keys, so it cannot live in the rotary module.

Three things, each on its own: the scale (`LogN`), the attention function that transformers calls (`_Hook`), and a
faster kernel for decode on CPUs (`_decode`). The setting lies on the attention layers, where the function finds it.

Source: github.com/DAMO-NLP-SG/CLEX (`log_scale`), there one scalar over the whole key length.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from longwave.interface import attention_layers, hands_on

PREFIX = "longwave-"  # of the names under which transformers calls us: longwave-sdpa, longwave-eager, ...
ON_LAYER = "_longwave_scaled"  # the attribute of an attention layer


# The model: put it on, take it off, look it up.


def enable_log_n(model: PreTrainedModel, original_length: int, exponent: float) -> None:
    """Scale the queries of every layer of the text model that attends to the whole context.

    Raises:
        ValueError: if the model's attention does not go through the interface of transformers or is not told
            the positions of its queries, or the exponent is not a number > 0.
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"log_n must be True, False or an exponent >= 0, got {exponent}.")
    base = attention_of(model)
    _require_interface(model, base)
    _require_positions(model)
    put_log_n_back(model, Scaled(base, LogN(original_length, exponent)))


def disable_log_n(model: PreTrainedModel) -> Scaled | None:
    """Back to the attention from before `enable_log_n`. Returns what `put_log_n_back` takes, None if log-n was off."""
    text, found = _text_model(model), _setting(model)
    for layer in attention_layers(text):
        vars(layer).pop(ON_LAYER, None)
    if found is not None:
        _set_attention(text, found.base)
    return found


def put_log_n_back(model: PreTrainedModel, setting: Scaled | None) -> None:
    """The very log-n that `disable_log_n` took off; nothing if that was None."""
    if setting is None:
        return
    text = _text_model(model)
    for layer in attention_layers(text):
        setattr(layer, ON_LAYER, setting)
    _set_attention(text, PREFIX + setting.base)


def count_keys(model: PreTrainedModel, on: bool) -> None:
    """For training on rows whose positions skip: let n be the number of keys that a query sees, not p + 1.

    Entropy grows with the number of keys. A row of L tokens has L of them however far apart they are
    said to stand; sharpened by its positions, it teaches the weights to expect sharper attention than
    a real window of p + 1 keys will give them. Rows must be single sequences without padding.
    """
    if (setting := _setting(model)) is not None:
        setting.temperature.by_keys = on


def log_n_of(model: PreTrainedModel) -> float:
    """The exponent in force, 0 for off."""
    setting = _setting(model)
    return 0.0 if setting is None else setting.temperature.exponent


def attention_of(model: PreTrainedModel) -> str:
    """The name of the text model's attention implementation, which is another one under log-n."""
    return _text_model(model).config._attn_implementation or ""


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The outermost model that has the text config: `model` itself, or a part of a multimodal one."""
    config = model.config.get_text_config(decoder=True)
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config)
    return next(parts, model)


def _setting(model: PreTrainedModel) -> Scaled | None:
    """What lies on the text model's attention layers, if its attention is ours."""
    text = _text_model(model)
    if not attention_of(text).startswith(PREFIX):
        return None
    found = (getattr(layer, ON_LAYER, None) for layer in attention_layers(text))
    return next((setting for setting in found if setting is not None), None)


def _set_attention(text: PreTrainedModel, name: str) -> None:
    """Set it for the text model alone: a vision tower keeps its own.

    In the config: `set_attn_implementation` would look for a flash kernel that has our name.
    """
    text.config._attn_implementation = {"": name}


def _require_interface(model: PreTrainedModel, base: str) -> None:
    text = _text_model(model)
    known = (base == "eager" or base in ALL_ATTENTION_FUNCTIONS) and base in ALL_MASK_ATTENTION_FUNCTIONS
    usable = known and type(text)._can_set_attn_implementation() and bool(attention_layers(text))
    if not usable or _asks_for(text, base):
        raise ValueError(
            f"{type(model).__name__} with {base!r} attention cannot have log-n scaling: its attention does not go "
            "through the interface of transformers, or depends on its name. Pass log_n=False."
        )


def _require_positions(model: PreTrainedModel) -> None:
    text = _text_model(model)
    for layer in attention_layers(text):
        if not (_is_local(layer, {}) or hands_on(text, layer, "position_ids")):
            raise ValueError(f"{type(model).__name__} cannot have log-n scaling: {_without_positions(layer)}")


def _without_positions(layer: nn.Module) -> str:
    return f"its {type(layer).__name__} hands no position_ids to the attention function. Pass log_n=False."


def _asks_for(model: PreTrainedModel, implementation: str) -> bool:
    """Whether the model's code branches on the implementation's name, which scaling changes.

    Sparse attention does (deepseek_v32, glm_moe_dsa): under a name that it does not know it would drop its mask.
    """
    question = re.compile(rf'_attn_implementation (==|!=|in|not in) [^:\n]*"{re.escape(implementation)}"')
    files = {type(module).__module__ for module in model.modules()}
    return any(
        question.search(inspect.getsource(sys.modules[name]))
        for name in files
        if name.startswith("transformers.models.")
    )


# The hook: the function registered with transformers, and what it finds on a layer.


class Scaled:
    """What lies on an attention layer: the attention that it had before, and how its queries are scaled.

    All layers of a model share one. It is copied and pickled with the model, and makes the name in the model's
    config known wherever it comes to life.
    """

    def __init__(self, base: str, temperature: LogN) -> None:
        self.base, self.temperature = base, temperature
        AttentionInterface.register(PREFIX + base, _Hook(base))
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])

    def __reduce__(self) -> tuple[Any, ...]:
        return Scaled, (self.base, self.temperature)


class _Hook:
    """An attention function: scales the queries as the layer says, and calls the implementation it wraps."""

    def __init__(self, base: str) -> None:
        self.base = base
        # These find their kernel by the name in the layer's config.
        self.by_name = is_flash_attention_requested(requested_attention_implementation=base) or "/" in base

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        attention = _eager(module) if self.base == "eager" else ALL_ATTENTION_FUNCTIONS[self.base]
        setting: Scaled | None = getattr(module, ON_LAYER, None)
        if setting is not None and not _is_local(module, kwargs):
            positions = setting.temperature.positions(query, key, kwargs.get("position_ids"))
            if positions is not None:
                query = setting.temperature.scaled(query, positions)
            elif not setting.temperature.by_keys:
                raise ValueError(f"log-n scaling lacks the positions: {_without_positions(module)}")
        if self.base == "sdpa" and _is_plain_decode(query, key, *args, **kwargs):
            return _decode(query, key, value, **kwargs)
        return attention(_Renamed(module, self.base) if self.by_name else module, query, key, value, *args, **kwargs)


class _Renamed:
    """An attention layer as the wrapped implementation knows it: the name in its config is its own."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer, self.config = layer, _NamedConfig(layer.config, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class _NamedConfig:
    def __init__(self, config: Any, name: str) -> None:
        self.config, self._attn_implementation = config, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _is_local(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Sliding-window and chunked layers see at most a window, however long the context."""
    if kwargs.get("sliding_window") is not None or getattr(module, "is_sliding", False):
        return True
    return getattr(module, "sliding_window", None) is not None


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that the attention layer comes from: each family has its own."""
    attention: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return attention


# The temperature: the scale of a query by its position.


class LogN:
    """max(1, ln(p + 1)/ln L)^exponent for the query at position p.

    Arguments:
        original_length: L in tokens.
        exponent: a number > 0.
        by_keys: count the keys before the query in the place of p, see `count_keys`.
    """

    def __init__(self, original_length: int, exponent: float, by_keys: bool = False) -> None:
        self.original_length, self.exponent, self.by_keys = original_length, exponent, by_keys
        self._last: tuple[Tensor, int, Tensor] | None = None  # position ids, their version, their scale

    def __reduce__(self) -> tuple[Any, ...]:
        return LogN, (self.original_length, self.exponent, self.by_keys)

    def positions(self, query: Tensor, key: Tensor, position_ids: Tensor | None) -> Tensor | None:
        """p of each query, as `scaled` takes it; None if all scales are 1 anyway, or the positions are unknown."""
        if not self.by_keys:
            return position_ids
        seen = key.shape[-2]  # at most L: training need not multiply by 1
        if seen <= self.original_length:
            return None
        return torch.arange(seen - query.shape[-2], seen, device=query.device)[None]

    def scaled(self, query: Tensor, position_ids: Tensor) -> Tensor:
        """query: [batch, heads, n, head_dim]; position_ids: [batch or 1, n], or [axes, batch, n]."""
        wide = torch.promote_types(query.dtype, torch.float32)
        return (query.to(wide) * self._scale_of(position_ids)).to(query.dtype)

    def _scale_of(self, position_ids: Tensor) -> Tensor:
        """The scale as [batch, 1, n, 1], computed once for all layers: they are handed the same tensor."""
        # A tensor of inference mode has no version, by which to see that a decode loop counts it up in place; and a
        # scale made there could not serve training.
        kept = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or position_ids.is_inference())
        if kept and self._last is not None:
            known, version, scale = self._last
            if known is position_ids and version == position_ids._version:
                return scale
        positions = position_ids[0] if position_ids.ndim == 3 else position_ids
        scale = log_n_scale(positions, self.original_length, self.exponent)[:, None, :, None]
        if kept:
            self._last = position_ids, position_ids._version, scale
        return scale


def log_n_scale(position_ids: Tensor, original_length: int, exponent: float) -> Tensor:
    """max(1, ln(p + 1)/ln L)^exponent in float32, exactly 1 for p < L; shape of `position_ids`."""
    ratio = (position_ids.float() + 1).log() / math.log(original_length)
    return torch.where(position_ids < original_length, 1.0, ratio.clamp(min=1.0) ** exponent)


# The kernel: decode on CPUs.


def _is_plain_decode(query: Tensor, key: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> bool:
    """One query on the CPU that sees all keys, of which several heads share each."""
    grouped = query.shape[2] == 1 and query.shape[1] != key.shape[1]
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))
    return (
        grouped and attention_mask is None and query.device.type == "cpu" and not special and not kwargs.get("dropout")
    )


def _decode(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scaling) v with the heads that share a key laid along the query axis.

    query [batch, heads, 1, d] -> [batch, key heads, group, d]: the kernel then reads each key once for its whole
    group. transformers asks for `enable_gqa` here, which on CPUs reads it once for every head.
    """
    batch, heads, _, width = query.shape
    packed = query.view(batch, key.shape[1], heads // key.shape[1], width)
    output = scaled_dot_product_attention(packed, key, value, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1]), None
