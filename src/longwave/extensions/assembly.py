"""From a request to the parts of an extension, and onto the model."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from longwave.attention import Attention
from longwave.attention.temperature import LogN
from longwave.extensions.adapter import put_adapter
from longwave.extensions.build import build_attention, build_trajectories, refuse_other_ropes
from longwave.extensions.dial import Dial
from longwave.extensions.gate import Gate
from longwave.extensions.handle import Extension
from longwave.extensions.mounts import Seat
from longwave.extensions.probe import BandedAttention, banded
from longwave.extensions.request import Request
from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.scalars import head_scalars_of
from longwave.extensions.sites import Site, reset_frequencies, rope_at
from longwave.extensions.standin import frequency_name
from longwave.extensions.steering import steer
from longwave.rope import Rope
from longwave.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of an extension, beside the model that they are for.

    Arguments:
        dial: which t every sequence runs at.
        rotaries: the module for each site.
        temperature: log-n; None where it is off.
        bands: the attention method on the model's layers; None without one.
    """

    dial: Dial
    rotaries: list[ScaledRotary]
    temperature: LogN | None
    bands: BandedAttention | None


def build_parts(host: PreTrainedModel, sites: list[Site], request: Request) -> Parts:
    """Build what a request asks for. The model stays as it is.

    Raises:
        ValueError: for options that cannot be, and for a model that cannot have the attention method.
    """
    ropes = [rope_at(site, host.config.get_text_config(decoder=True), request.original_length) for site in sites]
    if request.trajectory is not None:
        refuse_other_ropes(request.trajectory, ropes)
    attention = build_attention(request.spec, ropes, request.max_factor, request.of_attention)
    trajectories = _trajectories(request, ropes, attention)
    rope, reach = trajectories[0].rope, trajectories[0].max_factor
    dial = Dial(
        rope.original_length,
        reach if attention is None else float(request.max_factor),
        request.schedule,
        request.beyond,
    )
    dial.attention = attention
    rotaries = [_scaled(site, own, dial) for site, own in zip(sites, trajectories, strict=True)]
    if request.log_n and attention is not None and attention.remembers:
        raise ValueError(f"{attention.name} chooses its keys by unscaled queries. Pass log_n=False.")
    bands = None if attention is None else banded(host, attention, rotaries)
    heads = None
    if request.head_scalars:
        heads = rotaries[0].heads = head_scalars_of(host, attention, bands, request.log_n)
    scales = bool(request.log_n) or heads is not None
    temperature = LogN(rope.original_length, request.log_n, heads=heads) if scales else None
    return Parts(dial, rotaries, temperature, bands)


def put_on(host: PreTrainedModel, sites: list[Site], parts: Parts, request: Request) -> Extension:
    """Put the parts on the model. If this fails, the model is as it was.

    Raises:
        ValueError: for a model that cannot have log-n, the attention method or the adapter.
    """
    wanted, adapter = request.adapter, None
    if wanted is not None:
        adapter = put_adapter(host, Gate(parts.dial, wanted.trained_factor, wanted.gate), wanted)
    try:
        if parts.temperature is not None or parts.bands is not None:
            steer(host, parts.temperature, parts.bands)
    except BaseException:
        if adapter is not None:
            adapter.take_off()
        raise
    for site, rotary in zip(sites, parts.rotaries, strict=True):  # nothing fails from here on
        reset_frequencies(site.module, site.layer_type)
        for parent, name in site.owners:
            setattr(parent, name, rotary)
    seats = tuple(Seat(*owner) for site in sites for owner in site.owners)
    return Extension(host, seats, parts.dial, adapter=adapter)


def _trajectories(request: Request, ropes: list[Rope], attention: Attention | None) -> list[Trajectory]:
    """One for each site."""
    reach = request.max_factor if attention is None else attention.factor(request.max_factor)
    ready = request.trajectory
    if ready is None:
        return build_trajectories(request.spec, ropes, reach, request.of_method)
    if ready.max_factor < reach:
        raise ValueError(
            f"the trajectory reaches to t = {ready.max_factor:g}, and {request.spec.name} asks it for t = {reach:g}. "
            "Build it with a larger max_factor."
        )
    return [ready] * len(ropes)


def _scaled(site: Site, trajectory: Trajectory, dial: Dial) -> ScaledRotary:
    """The module for the places of a site, on the device of the site's own."""
    trajectory.to(getattr(site.module, frequency_name(site.layer_type)).device)
    return ScaledRotary(site.module, trajectory, dial, layer_type=site.layer_type).train(site.module.training)
