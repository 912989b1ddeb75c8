"""Which heads of a model get learned scalars."""

from __future__ import annotations

from transformers import PreTrainedModel

from longwave.attention import Attention
from longwave.attention.heads import HeadScalars
from longwave.attention.layers import attention_layers, is_local
from longwave.extensions.bands import BandedAttention
from longwave.extensions.steering import LOG_N, require_steerable, text_model


def head_scalars_of(
    model: PreTrainedModel, attention: Attention | None, bands: BandedAttention | None, log_n: float
) -> HeadScalars:
    """Scalars for the heads of all layers that attend to the whole context.

    Arguments:
        log_n: the exponent that they start from.

    Raises:
        ValueError: for an attention method that has no gradient, and a model that cannot have log-n.
    """
    if attention is not None and attention.remembers:
        raise ValueError(f"{attention.name} has no gradient, and so no learned scalars. Leave head_scalars out.")
    require_steerable(model, LOG_N)
    text = text_model(model)
    every = attention_layers(text)
    layers = [number for number, layer in enumerate(every) if not is_local(layer, {})]
    if bands is not None:
        layers = sorted(set(layers) & set(bands.layers))
    heads = text.config.num_attention_heads
    return HeadScalars(layers, heads, mass=getattr(attention, "mass", None), log_n=log_n)
