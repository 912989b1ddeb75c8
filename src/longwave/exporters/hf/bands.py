"""What an attention method makes of a model at several t, for the config of a folder with profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longwave.attention.layers import attention_layers
from longwave.exporters.base import Unsupported
from longwave.exporters.source import Source
from longwave.extensions.steering import steering_of, text_model
from longwave.serving.bands import Bands, Far
from longwave.trajectory import Snapshot


def bands_of(source: Source, factors: Sequence[float]) -> Bands | None:
    """The bands of a model that has an attention method; None for another one.

    Arguments:
        factors: t of every profile.

    Raises:
        Unsupported: for a method that is more than bands, and for a model with layers that have none.
    """
    attention, steering = source.extension.attention, steering_of(source.skeleton)
    if attention is None:
        return None
    if attention.remembers:
        raise Unsupported(
            f"{source.extension.spec} chooses keys as it goes, and vLLM is told bands alone. Run the model with longwave."
        )
    layers = len(attention_layers(text_model(source.skeleton)))
    if steering is None or len(steering.bands.layers) < layers:
        raise Unsupported(
            f"{source.model_type} has layers that {attention.name} leaves as they are, and profiles are for a model "
            "whose layers are alike. Run the model with longwave."
        )
    heads, rotary = source.extension.heads, source.extension.in_use[0]
    far = []
    for t in factors[1:]:
        at = attention.factor(t)
        scaling = rotary.trajectory.attention_scaling(at) * attention.scaling
        far.append(Far(tuple(rotary.frequencies.at(at).tolist()), float(scaling)))
    mass = None
    if heads is not None and heads.mass is not None:
        mass = {layer: tuple(heads.mass[row].tolist()) for layer, row in heads.rows.items()}
    return Bands(attention.name, attention.options(), attention.max_factor, tuple(far), mass)


def stored(source: Source, snapshot: Snapshot) -> Snapshot:
    """The frequencies by which keys are cached at the t of a snapshot: with bands the model's own."""
    if source.extension.attention is None:
        return snapshot
    own = source.snapshot(1.0, log_n=False)
    exact = source.extension.in_use[0].frequencies.own.detach().double().cpu()
    return replace(own, factor=snapshot.factor, inv_freq=exact[: own.inv_freq.numel()], length=snapshot.max_length)
