"""Steer a model's attention layers: put log-n and an attention method on them, take both off, look them up."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longwave.attention.hook import BANDS, NUMBER, ON_LAYER, PREFIX, Steering
from longwave.attention.layers import attention_layers, hands_on, is_local, without_positions
from longwave.attention.temperature import LogN

LOG_N = "log-n scaling", "Pass log_n=False."
BY_BANDS = "an attention method", "Choose a scaling method alone."


def require_steerable(model: PreTrainedModel, what: tuple[str, str]) -> None:
    """A `ValueError` if the model's attention does not go through the interface of transformers, or knows no positions.

    Arguments:
        what: LOG_N or BY_BANDS, for the message.
    """
    require_interface(model, _unprefixed(attention_of(model)), what)
    _require_positions(model, what)


def steer(model: PreTrainedModel, temperature: LogN | None = None, bands: Any = None) -> None:
    """Put log-n, an attention method or both on the layers of the text model that attend to the whole context.

    Raises:
        ValueError: see `require_steerable`.
    """
    require_steerable(model, LOG_N if bands is None else BY_BANDS)
    base = _unprefixed(attention_of(model))  # a model that shares its config with an extended one has our name
    steer_again(model, Steering(base, temperature, bands))


def stop_steering(model: PreTrainedModel) -> Steering | None:
    """Back to the attention from before `steer`. Returns what `steer_again` takes, None if nothing was on."""
    text, found = text_model(model), steering_of(model)
    for layer in attention_layers(text):
        vars(layer).pop(ON_LAYER, None)
        vars(layer).pop(NUMBER, None)
        if found is not None and found.bands is not None:
            found.bands.take_off(layer)
    if found is not None:
        set_attention(text, found.base)
    return found


def steer_again(model: PreTrainedModel, steering: Steering | None) -> None:
    """Put back the very steering that `stop_steering` took off; do nothing for None."""
    if steering is None:
        return
    text = text_model(model)
    for number, layer in enumerate(attention_layers(text)):
        setattr(layer, ON_LAYER, steering)
        setattr(layer, NUMBER, number)
        if steering.bands is not None:
            steering.bands.put_on(number, layer)
    set_attention(text, steering.name)


def change_attention(
    model: PreTrainedModel, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any
) -> None:
    """`model.set_attn_implementation` of an extended model: the steering then stands before the other implementation.

    Raises:
        ValueError: if the other implementation cannot be steered. The model is then as before.
    """
    steering, before = stop_steering(model), attention_of(model)
    change = type(model).set_attn_implementation
    try:
        change(model, _unprefixed(attn_implementation), *args, **kwargs)
        if steering is not None:
            base = attention_of(model)
            require_interface(model, base, LOG_N if steering.bands is None else BY_BANDS)
            steering = Steering(base, steering.temperature, steering.bands)
    except BaseException:
        set_attention(text_model(model), before)
        raise
    finally:
        steer_again(model, steering)


def _unprefixed(asked: Any) -> Any:
    """The implementations asked for, without the parts of their names that stand for longwave."""
    if isinstance(asked, dict):
        return {key: _unprefixed(value) for key, value in asked.items()}
    if isinstance(asked, str) and asked.startswith(PREFIX):
        return asked.removeprefix(PREFIX).removesuffix(BANDS)
    return asked


def count_keys(model: PreTrainedModel, on: bool) -> None:
    """For training on rows whose positions skip: let n be the number of keys that a query sees, not p + 1.

    Entropy grows with the number of keys. A row of L tokens has L keys, however far apart their positions are. If log-n
    counted positions, the weights would learn to expect sharper attention than a real window of p + 1 keys gives.
    Rows must be single sequences without padding.
    """
    steering = steering_of(model)
    if steering is not None and steering.temperature is not None:
        steering.temperature.by_keys = on


def log_n_of(model: PreTrainedModel) -> float:
    """The exponent in force, 0 for off."""
    steering = steering_of(model)
    return 0.0 if steering is None or steering.temperature is None else steering.temperature.exponent


def attention_of(model: PreTrainedModel) -> str:
    """The name of the text model's attention implementation. It begins with `longwave-` where longwave steers it."""
    return text_model(model).config._attn_implementation or ""


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The outermost model that has the text config: `model` itself, or a part of a multimodal one."""
    config = model.config.get_text_config(decoder=True)
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config)
    return next(parts, model)


def steering_of(model: PreTrainedModel) -> Steering | None:
    """The `Steering` on the text model's attention layers; None where there is none."""
    text = text_model(model)
    if not attention_of(text).startswith(PREFIX):
        return None
    found = (getattr(layer, ON_LAYER, None) for layer in attention_layers(text))
    return next((steering for steering in found if steering is not None), None)


def set_attention(text: PreTrainedModel, name: str) -> None:
    """Set the attention of the text model alone: a vision tower keeps its own attention.

    The config is written directly: `set_attn_implementation` would look for a flash kernel with longwave's name.
    """
    text.config._attn_implementation = {"": name}


def require_interface(model: PreTrainedModel, base: str, what: tuple[str, str]) -> None:
    """A `ValueError` if the model's attention does not go through the interface of transformers.

    Arguments:
        base: the name of its implementation.
        what: what it cannot have then, and the remedy.
    """
    text = text_model(model)
    known = (base == "eager" or base in ALL_ATTENTION_FUNCTIONS) and base in ALL_MASK_ATTENTION_FUNCTIONS
    usable = known and type(text)._can_set_attn_implementation() and bool(attention_layers(text))
    if not usable or _asks_for(text, base):
        raise ValueError(
            f"{type(model).__name__} with {base!r} attention cannot have {what[0]}: its attention does not go "
            f"through the interface of transformers, or depends on its name. {what[1]}"
        )


def require_attention_alone(model: PreTrainedModel, what: tuple[str, str]) -> None:
    """A `ValueError` for a model with layers that carry text on in another way than by attention (Mamba, for example).

    Arguments:
        what: what it cannot have then, and the remedy.
    """
    text = text_model(model)
    layers, of_attention = text.config.num_hidden_layers, len(attention_layers(text))
    if 0 < of_attention < layers:
        raise ValueError(
            f"{type(model).__name__} cannot have {what[0]}: {layers - of_attention} of its {layers} layers carry text "
            f"on without attention. {what[1]}"
        )


def let_ask(model: PreTrainedModel, what: tuple[str, str]) -> None:
    """Let a model's attention ask, in each forward, for the documents and the shards of its rows.

    Raises:
        ValueError: for attention that does not go through the interface of transformers.
    """
    if steering_of(model) is None:
        base = attention_of(model)
        require_interface(model, base, what)
        steer_again(model, Steering(base))


def _require_positions(model: PreTrainedModel, what: tuple[str, str]) -> None:
    text = text_model(model)
    for layer in attention_layers(text):
        if not (is_local(layer, {}) or hands_on(text, layer, "position_ids")):
            raise ValueError(f"{type(model).__name__} cannot have {what[0]}: {without_positions(layer)} {what[1]}")


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
