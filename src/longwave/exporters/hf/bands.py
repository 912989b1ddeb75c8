"""What an attention method makes of a model at several t, for the config of a folder with profiles."""

from __future__ import annotations

from dataclasses import replace

from longwave.attention.layers import attention_layers
from longwave.exporters.base import Unsupported
from longwave.exporters.source import Source
from longwave.extensions.steering import steering_of, text_model
from longwave.serving.bands import Bands
from longwave.trajectory import Snapshot


def bands_of(source: Source) -> Bands | None:
    """The bands of a model that has an attention method; None for another one.

    Raises:
        Unsupported: for a method that is more than bands, and for a model with layers that have none.
    """
    attention, steering = source.extension.attention, steering_of(source.skeleton)
    if attention is None:
        return None
    if attention.remembers:
        raise Unsupported(
            f"{attention.name} is more than bands, and vLLM is told bands alone. Run the model with longwave."
        )
    layers = len(attention_layers(text_model(source.skeleton)))
    if steering is None or len(steering.bands.layers) < layers:
        raise Unsupported(
            f"{source.model_type} has layers that {attention.name} leaves as they are, and profiles are for a model "
            "whose layers are alike. Run the model with longwave."
        )
    heads, mass = source.extension.heads, None
    if heads is not None and heads.mass is not None:
        mass = {layer: tuple(heads.mass[row].tolist()) for layer, row in heads.rows.items()}
    return Bands(attention.name, attention.options(), attention.max_factor, mass)


def snapshot_at(source: Source, factor: float) -> Snapshot:
    """The frequencies at t. Bands ask the trajectory for another t than that of the text, see `Attention.factor`.

    They are then the numbers that longwave itself computes with.
    """
    snapshot, attention = source.snapshot(source.factor(factor, None), log_n=False), source.extension.attention
    if attention is None:
        return snapshot
    at = attention.factor(factor) if factor > 1 else 1.0
    found, rotary = source.snapshot(at, log_n=False), source.extension.in_use[0]
    inv_freq = rotary.frequencies.at(at).detach().double().cpu()[: found.inv_freq.numel()]
    scaling = found.attention_scaling * (attention.scaling if factor > 1 else 1.0)
    return replace(found, factor=factor, inv_freq=inv_freq, attention_scaling=scaling, length=snapshot.max_length)
