"""Checkpoints whose config has RoPE scaling, as trajectories from the rope before that scaling.

Such a config is one point of a trajectory: `rope_type: yarn` with `factor: 4` is YaRN at t = 4. The method reads it
(`longwave.methods.scaling.RopeType`). The model is extended so that it runs there and computes what transformers
computes, while z(1) is the unscaled rope: other t and other methods start from what the model was before the scaling.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longwave.checkpoints.rope_section import COMMON, check_rope, sections
from longwave.extensions.attach import extend_from, restore
from longwave.extensions.handle import extension, find_extension
from longwave.extensions.sites import Site, find_sites, host_of, rope_at
from longwave.extensions.standin import undecorated_forward
from longwave.layout import CONFIG
from longwave.methods import rope_types
from longwave.methods.scaling import RECORD, Scaling
from longwave.rules import is_length
from longwave.schedule import tokens_at

logger = logging.getLogger("longwave")

RTOL = 4e-6  # transformers' formulas in float32 against ours in float64
# YaRN and Llama 3 blend θ(1) and θ(1)/t. float32 rounds the ends of the ramp, pair indices up to d/2, to d·2⁻²⁶; over
# a ramp of d/40 pairs that is 6e-7 of the blend, which stands beside 1/t where the ramp ends.
RAMP = 1e-6  # of θ(1)

UNSCALED = (None, "default", "axial")
DIVIDES = ("linear", "proportional")  # types that divide frequencies by a factor, which may be 1


def follow_config(model: PreTrainedModel) -> PreTrainedModel:
    """Extend a plain model whose config has RoPE scaling; `restore` gives back what was loaded.

    It stays plain where no method of ours has the config's frequencies and attention scaling: unknown types and
    keys, a scaling for each layer type, a module that computes its frequencies anew in every forward. The logger
    `longwave` then says why, in one line. No length is refused: transformers refuses none.
    """
    reason = recognise(model)
    if reason is not None:
        logger.warning("%s", reason)
    return model


def recognise(model: PreTrainedModel) -> str | None:
    """Do what `follow_config` does, but return its warning: why RoPE scaling stays part of the plain model, or None."""
    if find_extension(model) is not None:
        return None
    kind = scaling_of(model.config)
    if kind is None:
        return None
    try:
        _follow(model)
    except ValueError as error:
        restore(model)
        file = Path(model.name_or_path) / CONFIG if model.name_or_path else "the config"
        return (
            f"{file} has RoPE scaling that is not recognised. {kind!r} stays part of the plain model: {error} "
            "Another method would scale it twice."
        )
    return None


def unrecognised(model: nn.Module) -> str | None:
    """What `recognise` says of a plain model, which stays as it is; None for an extended one."""
    host = host_of(model)
    if find_extension(host) is not None:
        return None
    reason = recognise(host)
    restore(host)
    return reason


def _follow(model: PreTrainedModel) -> None:
    sites = find_sites(model)
    if not all(_is_simple(site) for site in sites):
        raise ValueError("its rotary module has frequencies for each layer type, or computes them in every forward.")
    if any(site.module.inv_freq.is_meta for site in sites):
        raise ValueError("its frequencies are on the meta device, and have no values yet.")
    method, scaling = _read(model, sites[0])
    if not scaling.max_factor > 1:
        return  # the config reaches no further than its original length: nothing is scaled for more
    extend_from(
        model,
        {site.module: _unscaled(site.module, scaling) for site in sites},
        method,
        max_factor=scaling.max_factor,
        schedule=scaling.schedule,
        original_length=scaling.original_length,
        log_n=False,
        beyond="clamp",
        **scaling.options,
    )
    if not _agrees(model, scaling):
        raise ValueError("the model's frequencies or attention scaling are not those of the method.")
    extension(model).recognised = True


def scaling_of(config: PreTrainedConfig) -> str | None:
    """The type of RoPE scaling that a config has, of any of its layer types; None where every rope is unscaled.

    The config is the one that transformers has read: of `rope_scaling` and `rope_parameters` it takes the first.
    """
    found = sections(getattr(config.get_text_config(decoder=True), "rope_parameters", None)).values()
    ropes = [rope for rope in found if isinstance(rope, Mapping)]
    kinds = [rope.get("rope_type", rope.get("type")) for rope in ropes if _scales(rope)]
    return next((str(kind) for kind in kinds if kind not in UNSCALED), None)


def _scales(rope: Mapping[str, Any]) -> bool:
    """A division by 1 is none: `proportional` is mostly a way to rotate a part of a head."""
    return rope.get("rope_type") not in DIVIDES or rope.get("factor") not in (None, 1)


def _is_simple(site: Site) -> bool:
    computes_anew = "rope_init_fn" in undecorated_forward(site.module).__code__.co_names  # phimoe
    return site.layer_type is None and hasattr(site.module, "config") and not computes_anew


def _read(model: PreTrainedModel, site: Site) -> tuple[str, Scaling]:
    """The method that reads the section of the model's config, and what it finds there."""
    config: Any = site.module.config
    parameters = getattr(config, "rope_parameters", None) or {}
    try:
        check_rope(parameters)  # a model that was not loaded by us has passed no check
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    kind, known = str(parameters.get("rope_type")), rope_types()
    if kind not in known:
        raise ValueError(f"no method of longwave has that type. Known types: {', '.join(known)}.")
    method, rope_type = known[kind]
    given = {name for name, value in parameters.items() if value is not None}
    if unknown := sorted(given - set(COMMON) - set(rope_type.keys)):
        raise ValueError(f"the config's {unknown[0]} is unknown to longwave.")
    length: Any = getattr(config, "max_position_embeddings", None)
    longest = int(length) if is_length(length) else 0  # of a config without that key its factor says the reach
    rope = rope_at(site, config, longest or None)
    record = getattr(model.config, RECORD, None)
    if isinstance(record, dict) and rope_type.from_record is not None:
        return method, rope_type.from_record(record, parameters, rope)
    return method, rope_type.from_rope_parameters(parameters, rope, longest)


def _unscaled(module: nn.Module, scaling: Scaling) -> nn.Module:
    """A copy of the module that holds z(1); the module itself where it does so already."""
    if scaling.inv_freq is None:
        return module
    plain: Any = copy.copy(module)
    plain._buffers = dict(module._buffers)  # copy.copy shares them
    plain.inv_freq = scaling.inv_freq.to(module.inv_freq)  # type: ignore[arg-type]
    plain.original_inv_freq = plain.inv_freq.clone()
    plain.attention_scaling, plain.rope_type = scaling.attention, "default"
    return plain


def _agrees(model: PreTrainedModel, scaling: Scaling) -> bool:
    """Whether the model runs as transformers would run it at the config's own t."""
    for mount in extension(model).mounts:
        rotary, holds_short = mount.rotary, mount.own is mount.rotary.base
        module: Any = mount.own
        theirs, attention = module.inv_freq, getattr(module, "attention_scaling", 1.0)
        if holds_short:  # the module holds the frequencies of short texts
            length = tokens_at(scaling.factor, scaling.original_length)
            kind = module.config.rope_parameters["rope_type"]
            with theirs.device:  # some of its tensors are made on the default device
                theirs, attention = ROPE_INIT_FUNCTIONS[kind](module.config, theirs.device, seq_len=length)
        ours = rotary.trajectory.at(scaling.factor)
        ours_attention = ours.attention_scaling * getattr(rotary.base, "attention_scaling", 1.0)
        if theirs.shape != ours.inv_freq.shape or not math.isclose(attention, ours_attention, rel_tol=1e-6):
            return False
        allowed = RTOL * ours.inv_freq + RAMP * rotary.trajectory.at(1.0).inv_freq
        if not bool(((ours.inv_freq - theirs.detach().cpu().double()).abs() <= allowed).all()):
            return False
    return True
