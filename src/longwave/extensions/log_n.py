"""Put log-n on a model's attention layers, take it off, look it up."""

from __future__ import annotations

import inspect
import math
import re
import sys
from typing import Any

from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longwave.attention.hook import ON_LAYER, PREFIX, Scaled
from longwave.attention.layers import attention_layers, hands_on, is_local, without_positions
from longwave.attention.temperature import LogN


def enable_log_n(model: PreTrainedModel, original_length: int, exponent: float) -> None:
    """Scale the queries of every layer of the text model that attends to the whole context.

    Raises:
        ValueError: if the model's attention does not go through the interface of transformers or is not told
            the positions of its queries, or if the exponent is not a number > 0.
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"log_n must be True, False or an exponent >= 0, got {exponent}.")
    base = _unprefixed(attention_of(model))  # a model that shares its config with an extended one has our name
    _require_interface(model, base)
    _require_positions(model)
    put_log_n_back(model, Scaled(base, LogN(original_length, exponent)))


def disable_log_n(model: PreTrainedModel) -> Scaled | None:
    """Back to the attention from before `enable_log_n`. Returns what `put_log_n_back` takes, None if log-n was off."""
    text, found = _text_model(model), scaled_of(model)
    for layer in attention_layers(text):
        vars(layer).pop(ON_LAYER, None)
    if found is not None:
        _set_attention(text, found.base)
    return found


def put_log_n_back(model: PreTrainedModel, setting: Scaled | None) -> None:
    """Put back the very log-n that `disable_log_n` took off; do nothing for None."""
    if setting is None:
        return
    text = _text_model(model)
    for layer in attention_layers(text):
        setattr(layer, ON_LAYER, setting)
    _set_attention(text, PREFIX + setting.base)


def change_attention(
    model: PreTrainedModel, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any
) -> None:
    """`model.set_attn_implementation` of an extended model: log-n then stands before the other implementation.

    Raises:
        ValueError: if the other implementation cannot have log-n. The model is then as before.
    """
    setting, before = disable_log_n(model), attention_of(model)
    change = type(model).set_attn_implementation
    try:
        change(model, _unprefixed(attn_implementation), *args, **kwargs)
        if setting is not None:
            base = attention_of(model)
            _require_interface(model, base)
            setting = Scaled(base, setting.temperature)
    except BaseException:
        _set_attention(_text_model(model), before)
        raise
    finally:
        put_log_n_back(model, setting)


def _unprefixed(asked: Any) -> Any:
    """The implementations asked for, without the part of their names that stands for log-n."""
    if isinstance(asked, dict):
        return {key: _unprefixed(value) for key, value in asked.items()}
    return asked.removeprefix(PREFIX) if isinstance(asked, str) else asked


def count_keys(model: PreTrainedModel, on: bool) -> None:
    """For training on rows whose positions skip: let n be the number of keys that a query sees, not p + 1.

    Entropy grows with the number of keys. A row of L tokens has L keys, however far apart their positions are. If log-n
    counted positions, the weights would learn to expect sharper attention than a real window of p + 1 keys gives.
    Rows must be single sequences without padding.
    """
    if (setting := scaled_of(model)) is not None:
        setting.temperature.by_keys = on


def log_n_of(model: PreTrainedModel) -> float:
    """The exponent in force, 0 for off."""
    setting = scaled_of(model)
    return 0.0 if setting is None else setting.temperature.exponent


def attention_of(model: PreTrainedModel) -> str:
    """The name of the text model's attention implementation. Under log-n it begins with `longwave-`."""
    return _text_model(model).config._attn_implementation or ""


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The outermost model that has the text config: `model` itself, or a part of a multimodal one."""
    config = model.config.get_text_config(decoder=True)
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config)
    return next(parts, model)


def scaled_of(model: PreTrainedModel) -> Scaled | None:
    """The `Scaled` on the text model's attention layers, if longwave steers its attention."""
    text = _text_model(model)
    if not attention_of(text).startswith(PREFIX):
        return None
    found = (getattr(layer, ON_LAYER, None) for layer in attention_layers(text))
    return next((setting for setting in found if setting is not None), None)


def _set_attention(text: PreTrainedModel, name: str) -> None:
    """Set the attention of the text model alone: a vision tower keeps its own attention.

    The config is written directly: `set_attn_implementation` would look for a flash kernel with longwave's name.
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
        if not (is_local(layer, {}) or hands_on(text, layer, "position_ids")):
            raise ValueError(f"{type(model).__name__} cannot have log-n scaling: {without_positions(layer)}")


def _asks_for(model: PreTrainedModel, implementation: str) -> bool:
    """Whether the model's code branches on the implementation's name, which scaling changes.

    Sparse attention branches on it (deepseek_v32, glm_moe_dsa): under an unknown name it would drop its mask.
    """
    question = re.compile(rf'_attn_implementation (==|!=|in|not in) [^:\n]*"{re.escape(implementation)}"')
    files = {type(module).__module__ for module in model.modules()}
    return any(
        question.search(inspect.getsource(sys.modules[name]))
        for name in files
        if name.startswith("transformers.models.")
    )
