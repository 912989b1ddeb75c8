"""Per-query log-n attention scaling, through the attention interface of transformers.

q_p <- q_p · max(1, ln(p + 1) / ln L)^exponent for the query at position p: attention over n keys
keeps its entropy as n grows beyond L (YaRN calls a constant form of it a temperature). Below L the
factor is exactly 1. cos and sin are shared by queries and keys, so it cannot live in the rotary module.

The whole setting is an attention implementation, registered as e.g. `longwave-sdpa-256-1.0`: its name
is what the model's config carries, and `log_n_of` looks it up.

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

PREFIX, BY_KEYS = "longwave", "-keys"


def enable_log_n(model: PreTrainedModel, original_length: int, exponent: float) -> None:
    """Scale the queries of every layer of the text model that attends to the whole context.

    Raises:
        ValueError: if the model's attention does not go through the interface of transformers, or the
            exponent is not a number > 0.
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"log_n must be True, False or an exponent >= 0, got {exponent}.")
    text = _text_model(model)
    base = attention_of(model)
    if is_flash_attention_requested(requested_attention_implementation=base) or "/" in base:
        raise ValueError(
            f"{base!r} attention cannot have log-n scaling: it finds its kernel by its own name. "
            'Load the model with attn_implementation="sdpa", or pass log_n=False.'
        )
    usable = type(text)._can_set_attn_implementation() and base in ALL_MASK_ATTENTION_FUNCTIONS
    if not usable or _asks_for(text, base):
        raise ValueError(
            f"{type(model).__name__} with {base!r} attention cannot have log-n scaling: its attention does not go "
            "through the interface of transformers, or depends on its name. Pass log_n=False."
        )
    name = f"{PREFIX}-{base}-{original_length}-{exponent}"
    for key, by_keys in ((name, False), (name + BY_KEYS, True)):
        AttentionInterface.register(key, _LogN(base, original_length, exponent, by_keys))
        AttentionMaskInterface.register(key, ALL_MASK_ATTENTION_FUNCTIONS[base])
    set_attention(model, name)


def count_keys(model: PreTrainedModel, on: bool) -> None:
    """For training on rows whose positions skip: let n be the number of keys that a query sees, not p + 1.

    Entropy grows with the number of keys. A row of L tokens has L of them however far apart they are
    said to stand; sharpened by its positions, it teaches the weights to expect sharper attention than
    a real window of p + 1 keys will give them. Rows must be single sequences without padding.
    """
    if log_n_of(model):
        name = attention_of(model).removesuffix(BY_KEYS)
        set_attention(model, name + BY_KEYS if on else name)


def disable_log_n(model: PreTrainedModel) -> None:
    """Back to the attention implementation from before `enable_log_n`; nothing if it is not enabled."""
    if (setting := _setting(model)) is not None:
        set_attention(model, setting.base)


def log_n_of(model: PreTrainedModel) -> float:
    """The exponent in force, 0 for off."""
    setting = _setting(model)
    return 0.0 if setting is None else setting.exponent


def attention_of(model: PreTrainedModel) -> str:
    """The name of the text model's attention implementation, which log-n is part of."""
    return _text_model(model).config._attn_implementation or ""


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Set it for the text model alone: a vision tower keeps its own."""
    _text_model(model).set_attn_implementation({"": name})


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The outermost model that has the text config: `model` itself, or a part of a multimodal one."""
    config = model.config.get_text_config(decoder=True)
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config)
    return next(parts, model)


def _setting(model: PreTrainedModel) -> _LogN | None:
    """What is registered under the name of the model's attention, if it is ours."""
    found = ALL_ATTENTION_FUNCTIONS.get(attention_of(model))
    return found if isinstance(found, _LogN) else None


class _LogN:
    """An attention function: scales the queries and calls the implementation it wraps."""

    def __init__(self, base: str, original_length: int, exponent: float, by_keys: bool) -> None:
        self.base, self.original_length, self.exponent, self.by_keys = base, original_length, exponent, by_keys
        self._last: tuple[Tensor, int, Tensor] | None = None  # position ids, their version, their scale

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        attention = _eager(module) if self.base == "eager" else ALL_ATTENTION_FUNCTIONS[self.base]
        # Rows of at most L keys, counted by keys: the factor is 1, and training need not multiply by it.
        if not _is_local(module, kwargs) and not (self.by_keys and key.shape[-2] <= self.original_length):
            position_ids = _key_counts(query, key) if self.by_keys else kwargs.get("position_ids")
            query = self._scale(module, query, position_ids)
        if self.base == "sdpa" and _is_plain_decode(query, key, *args, **kwargs):
            return _decode(query, key, value, **kwargs)
        return attention(module, query, key, value, *args, **kwargs)

    def _scale(self, module: nn.Module, query: Tensor, position_ids: Tensor | None) -> Tensor:
        """query: [batch, heads, n, head_dim]; position_ids: [batch or 1, n], or [axes, batch, n]."""
        if position_ids is None:
            raise ValueError(f"{type(module).__name__} hands no position_ids to its attention. Pass log_n=False.")
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


def _key_counts(query: Tensor, key: Tensor) -> Tensor:
    """What stands for the position of each query, [1, n]: how many keys come before its own."""
    seen = key.shape[-2]
    return torch.arange(seen - query.shape[-2], seen, device=query.device)[None]


def log_n_scale(position_ids: Tensor, original_length: int, exponent: float) -> Tensor:
    """max(1, ln(p + 1)/ln L)^exponent in float32, exactly 1 for p < L; shape of `position_ids`."""
    ratio = (position_ids.float() + 1).log() / math.log(original_length)
    return torch.where(position_ids < original_length, 1.0, ratio.clamp(min=1.0) ** exponent)


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


def _is_local(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Sliding-window and chunked layers see at most a window, however long the context."""
    if kwargs.get("sliding_window") is not None or getattr(module, "is_sliding", False):
        return True
    return getattr(module, "sliding_window", None) is not None


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that the attention layer comes from: each family has its own."""
    attention: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return attention
