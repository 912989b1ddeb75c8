"""Checkpoints whose config has RoPE scaling, as trajectories from the rope before that scaling.

Such a config is one point of a trajectory: `rope_type: yarn` with `factor: 4` is YaRN at t = 4. The model is
extended so that it runs there and computes what transformers computes, while z(1) is the unscaled rope: other t
and other methods start from what the model was before the scaling.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longwave.checkpoints.config import are_positive, check_rope, is_length, is_positive, sections
from longwave.extensions.attach import extend_from, restore
from longwave.extensions.handle import extension, find_extension
from longwave.extensions.sites import Site, find_sites, host_of, rope_at
from longwave.extensions.standin import undecorated_forward
from longwave.rope import Rope
from longwave.schedule import Continuous, Schedule, Static, Threshold, tokens_at

logger = logging.getLogger("longwave")

RECORD = "longwave"  # the key that an export of ours adds to its config
RTOL = 4e-6  # transformers' formulas in float32 against ours in float64, at factors up to 64

COMMON = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "mrope_section", "mrope_interleaved",  # which axis of a position turns a pair: the module's own forward reads them
}  # fmt: skip
UNSCALED = (None, "default", "axial")
KEYS = {  # a config with any other key is not ours to understand
    "linear": COMMON,
    "dynamic": COMMON,
    # `finetuned` tells how the weights of the YaRN repository were made, and changes no frequency
    "yarn": COMMON | {"attention_factor", "beta_fast", "beta_slow", "truncate", "finetuned"},
    "llama3": COMMON | {"low_freq_factor", "high_freq_factor"},
    "longrope": COMMON | {"attention_factor", "short_factor", "long_factor", "short_mscale", "long_mscale"},
}


@dataclass(frozen=True)
class Scaling:
    """A config's scaling in our terms.

    Arguments:
        method: its name.
        factor: the t that the config describes.
        original_length: L in tokens.
        reach: the longest sequence that the config speaks of, in tokens.
        schedule: length -> t as transformers does it.
        options: of the method.
        inv_freq: θ(1) where the model's modules hold scaled frequencies, None where they hold θ(1).
        attention: the attention scaling at z(1) that goes with `inv_freq`.
    """

    method: str
    factor: float
    original_length: int
    reach: int
    schedule: Schedule
    options: dict[str, Any] = field(default_factory=dict)
    inv_freq: Tensor | None = None
    attention: float = 1.0

    @property
    def max_factor(self) -> float:
        """The trajectory's: ⌊max_factor·L⌋ is the reach, or factor·L where that is more. It may be over `factor`."""
        return max(self.factor, self.reach / self.original_length)


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
    """`follow_config`, without a word: why RoPE scaling stays part of the plain model, None where none does."""
    if find_extension(model) is not None:
        return None
    kind = scaling_of(model.config)
    if kind is None:
        return None
    try:
        _follow(model)
    except ValueError as error:
        restore(model)
        file = Path(model.name_or_path) / "config.json" if model.name_or_path else "the config"
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
    scaling = _read(model, sites[0])
    if not scaling.max_factor > 1:
        return  # the config reaches no further than its original length: nothing is scaled for more
    extend_from(
        model,
        {site.module: _unscaled(site.module, scaling) for site in sites},
        scaling.method,
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
    return rope.get("rope_type") not in ("linear", "proportional") or rope.get("factor") not in (None, 1)


def _is_simple(site: Site) -> bool:
    computes_anew = "rope_init_fn" in undecorated_forward(site.module).__code__.co_names  # phimoe
    return site.layer_type is None and hasattr(site.module, "config") and not computes_anew


def _read(model: PreTrainedModel, site: Site) -> Scaling:
    config: Any = site.module.config
    parameters = getattr(config, "rope_parameters", None) or {}
    try:
        check_rope(parameters)  # a model that was not loaded by us has passed no check
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    kind = str(parameters.get("rope_type"))
    if kind not in KEYS:
        raise ValueError(f"no method of longwave has that type. Known types: {', '.join(KEYS)}.")
    given = {name for name, value in parameters.items() if value is not None}
    if unknown := sorted(given - KEYS[kind]):
        raise ValueError(f"the config's {unknown[0]} is unknown to longwave.")
    given_length: Any = getattr(config, "max_position_embeddings", None)
    longest = (
        int(given_length) if is_length(given_length) else 0
    )  # of a config without that key its factor says the reach
    rope = rope_at(site, config, longest or None)
    record = getattr(model.config, RECORD, None)
    if kind == "longrope" and isinstance(record, dict):
        return _read_export(record, parameters, rope)
    return READERS[kind](parameters, longest, rope)


def _original(parameters: Mapping[str, Any]) -> int:
    """max_position_embeddings counts before the scaling in some configs and after it in others: L must be given.

    Of most types transformers itself puts it there.
    """
    original = parameters.get("original_max_position_embeddings")
    if original is None:
        raise ValueError(
            "its original length is unknown. Write original_max_position_embeddings beside its factor into the config."
        )
    return int(original)


def _read_linear(parameters: Mapping[str, Any], longest: int, rope: Rope) -> Scaling:
    factor = _factor(parameters)
    return Scaling("linear", factor, _original(parameters), longest, Static(factor), {}, 1 / rope.powers)


def _read_dynamic(parameters: Mapping[str, Any], longest: int, rope: Rope) -> Scaling:
    """α = factor·n/L - (factor - 1) is NTK with that slope; transformers sets no end, our t stays at the factor."""
    factor = _factor(parameters)
    if not longest:
        raise ValueError("the config has no max_position_embeddings.")
    return Scaling("ntk", factor, longest, longest, Continuous(), {"slope": factor})


def _read_yarn(parameters: Mapping[str, Any], longest: int, rope: Rope) -> Scaling:
    original = _original(parameters)
    factor = float(parameters.get("factor") or longest / original)
    if factor < 1:
        raise ValueError(f"its factor is null, and max_position_embeddings {longest} is below {original}.")
    options: dict[str, Any] = {name: parameters[name] for name in ("beta_fast", "beta_slow") if parameters.get(name)}
    options["truncate"] = bool(parameters.get("truncate", True))
    if parameters.get("attention_factor") is not None and factor > 1:
        options["temperature"] = (parameters["attention_factor"] - 1) / math.log(factor)
    return Scaling("yarn", factor, original, longest, Static(factor), options, 1 / rope.powers)


def _read_llama3(parameters: Mapping[str, Any], longest: int, rope: Rope) -> Scaling:
    factor, original = _factor(parameters), _original(parameters)
    options = {name: parameters[name] for name in ("low_freq_factor", "high_freq_factor")}
    if None in options.values():
        raise ValueError("its low_freq_factor or high_freq_factor is null.")
    return Scaling("llama3", factor, original, longest, Static(factor), options, 1 / rope.powers)


def _read_longrope(parameters: Mapping[str, Any], longest: int, rope: Rope) -> Scaling:
    """The attention scaling holds within L, too: it stays the module's own, and ours is 1."""
    original, long = _original(parameters), parameters["long_factor"]
    if long is None:
        raise ValueError("its long_factor is null.")
    factor = max(longest / original, float(parameters.get("factor") or 1.0))
    if factor == 1:  # no length is beyond L
        return Scaling("longrope", factor, original, longest, Threshold())
    options = {"long_factor": long, "short_factor": _held(rope), "attention_factor": 1.0}
    return Scaling("longrope", factor, original, longest, Threshold(), options)


def _factor(parameters: Mapping[str, Any]) -> float:
    if parameters["factor"] is None:
        raise ValueError("its factor is null.")
    return float(parameters["factor"])


READERS: dict[str, Callable[[Mapping[str, Any], Any, Rope], Scaling]] = {
    "linear": _read_linear,
    "dynamic": _read_dynamic,
    "yarn": _read_yarn,
    "llama3": _read_llama3,
    "longrope": _read_longrope,
}


def _read_export(record: Mapping[str, Any], parameters: Mapping[str, Any], rope: Rope) -> Scaling:
    """An export of ours holds the factors of one t; its record says which, and what z(1) has.

    That is λ(1), where it is not 1, and an attention scaling of the model's own. The rest of the config's, per-query
    log-n as a constant included, belongs to t.
    """
    factor: Any = record.get("factor")
    original: Any = record.get("original_length")
    length, long = parameters.get("original_max_position_embeddings"), parameters["long_factor"]
    short = record.get("short_factor") or [1.0] * len(rope.powers)
    own = record.get("attention_scaling", 1.0)
    sound = all(map(is_positive, (factor, own))) and is_length(original) and are_positive(short) and bool(long)
    same = sound and is_length(length) and parameters["short_factor"] == long and len(short) == len(rope.powers)
    if not same or factor < 1 or length != record.get("length", tokens_at(factor, original)):
        raise ValueError(f"the key {RECORD!r} of the config does not go with its rope_parameters.")
    factor, original, own = float(factor), int(original), float(own)
    inv_freq = 1 / (torch.tensor(short, device="cpu") * rope.powers)
    held = _held(Rope(inv_freq, original, rope.base))
    attention = (parameters.get("attention_factor") or 1.0) / own
    scaling = Scaling("longrope", factor, original, length, Static(factor), {}, inv_freq, own)
    if scaling.max_factor > factor > 1:  # the method's factors are those at its end, which lies on the same line
        power = math.log(scaling.max_factor) / math.log(factor)
        long = [one * (other / one) ** power for one, other in zip(held, long, strict=True)]
        attention **= power
    options = {"long_factor": long, "short_factor": held, "attention_factor": attention}
    return replace(scaling, options=options)


def _held(rope: Rope) -> list[float]:
    """λ(1) as frequencies in float32 hold it: relative to these the long factors come out bit for bit."""
    return rope.factors.tolist()


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
        if not torch.allclose(ours.inv_freq, theirs.detach().cpu().double(), rtol=RTOL, atol=0):
            return False
    return True
