"""config.json of an export.

`rope_type: longrope` with the same factors for short and long sequences, and as original length the full one, is
one fixed set of frequencies for transformers, vLLM and SGLang alike: θ_i = 1/(λ_i·b^(2i/d)). Its defaults differ
between the engines, so the config states every key: transformers reads `attention_factor`; vLLM and SGLang read
`short_mscale` and `long_mscale`. For a missing key each engine has its own rule.
"""

from __future__ import annotations

from typing import Any

from longwave.exporters.source import Source
from longwave.methods.scaling import RECORD
from longwave.trajectory import Snapshot

KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
# The keys of a scaling that the model was trained with: the factors and the attention scaling contain it now.
REPLACED = (
    "rope_type", "type", "factor", "short_factor", "long_factor", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "truncate", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "short_mscale", "long_mscale", "finetuned",
)  # fmt: skip
LENGTHS = ("max_position_embeddings", "model_max_length", "max_sequence_length", "seq_length", "max_seq_len")


def hf_config(source: Source, snapshot: Snapshot, *, wide: bool = False) -> dict[str, Any]:
    """config.json with the snapshot's frequencies, in the one form that every engine reads the same way.

    Arguments:
        wide: for weights in float32.
    """
    config: dict[str, Any] = {**source.config}
    config.pop("auto_map", None)
    text = _text_part(source, config)
    length = snapshot.max_length
    old, kept = _ropes(source, text)
    rope = _rope(source, snapshot, kept)
    if source.head_dim is not None and not source.rotates_whole_heads and "qk_nope_head_dim" not in text:
        # configs of transformers 4 say it in other places, where vLLM and SGLang do not look
        rope.setdefault("partial_rotary_factor", snapshot.rotary_dim / source.head_dim)
    text.pop("rope_scaling", None)
    if source.layer_type is not None:
        text["rope_parameters"] = {**_per_layer_type(source, old), source.layer_type: rope}
    else:
        text["rope_parameters"] = rope
        # where transformers 4 and engines of its time look
        text["rope_scaling"], text["rope_theta"] = rope, rope["rope_theta"]
    if source.contents.untied:  # vLLM and SGLang take config.json at its word
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    text |= {key: length for key in LENGTHS if key in text or key == "max_position_embeddings"}
    if "head_dim" in text and text["head_dim"] is None:  # longrope takes the key at its word (Mixtral)
        text["head_dim"] = source.head_dim
    if "original_max_position_embeddings" in text:
        text["original_max_position_embeddings"] = length
    if wide:
        for part in (config, text):
            part.pop("torch_dtype", None)  # as transformers 4 wrote it
            part["dtype"] = "float32"
    config[RECORD] = _record(source, snapshot)  # for `longwave.load`; engines pass over it
    return config


def unknown_key(source: Source) -> str | None:
    """Why a key of the model's rope_parameters cannot stay in the export; None if there is no such key.

    Attention code outside the rotary module may read a key that is neither kept nor replaced here. What it does with
    the key beside `longrope` is not known.
    """
    _, own = _ropes(source, _text_part(source, {**source.config}))
    unknown = [
        key for key, value in own.items() if key not in KEPT + REPLACED and value and not isinstance(value, dict)
    ]
    return f"its attention depends on {unknown[0]} of rope_parameters, too." if unknown else None


def _rope(source: Source, snapshot: Snapshot, kept: dict[str, Any]) -> dict[str, Any]:
    factors, scaling = snapshot.factors.tolist(), snapshot.attention_scaling
    return {
        **{key: kept[key] for key in KEPT if key in kept},
        "rope_type": "longrope",
        "rope_theta": source.rope.base,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "original_max_position_embeddings": snapshot.max_length,
        "attention_factor": scaling,
        "short_mscale": scaling,
        "long_mscale": scaling,
    }


def _record(source: Source, snapshot: Snapshot) -> dict[str, Any]:
    """The section `longwave` of the config, for `longwave.load`."""
    record: dict[str, Any] = {
        "method": source.method,
        "factor": snapshot.factor,
        "original_length": snapshot.original_length,
        "length": snapshot.max_length,
        "attention_scaling": source.own_scaling,
        "log_n_constant": source.log_n_constant(snapshot),
    }
    if snapshot.query_scaling or source.record.get("log_n_in_weights"):
        record["log_n_in_weights"] = True
    pretrained = source.rope.factors
    if not bool((pretrained == 1).all()):
        record["short_factor"] = pretrained.tolist()
    return record


def _text_part(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """The part of the config, copied, that describes the text model: all of it, or a section of a multimodal one."""
    whole, text = source.skeleton.config, source.text_config
    if text is whole:
        return config
    name = next(name for name in whole.sub_configs if getattr(whole, name, None) is text)
    config[name] = {**config.get(name, {})}
    part: dict[str, Any] = config[name]
    return part


def _ropes(source: Source, text: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`rope_parameters` as the config has them, and those of the layers that are extended."""
    old = text.get("rope_parameters") or text.get("rope_scaling") or {}
    own = old.get(source.layer_type) if source.layer_type is not None else None
    return old, own if isinstance(own, dict) else old


def _per_layer_type(source: Source, old: dict[str, Any]) -> dict[str, Any]:
    """The ropes of the other layer types as they were, written out where the config left them to defaults."""
    ropes = source.text_config.rope_parameters
    return {name: dict(rope) for name, rope in ropes.items() if isinstance(rope, dict)} | {
        name: rope for name, rope in old.items() if isinstance(rope, dict)
    }
