"""The RoPE section of a config: which keys it may have, and which values each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from longwave import rules
from longwave.methods import rope_types

PARTS = ("text_config", "decoder", "thinker_config")  # where a config of several models has the text model
ROPES = ("rope_scaling", "rope_parameters")  # the old name and the new one of a config's RoPE section
COMMON = {  # keys that a section of any type may have
    "rope_type": rules.ROPE_NAME,
    "type": rules.ROPE_NAME,
    "rope_theta": rules.POSITIVE,
    "partial_rotary_factor": rules.SHARE,
    "factor": rules.AT_LEAST_1,
    "original_max_position_embeddings": rules.LENGTH,
    # Which axis of a position turns a pair: the module's own forward reads them.
    "mrope_section": rules.SECTIONS,
    "mrope_interleaved": rules.ANY,
}
OTHERS = {  # keys that transformers reads and no method of ours does
    "rope_local_base_freq": rules.POSITIVE,
    "max_position_embeddings": rules.LENGTH,
    **dict.fromkeys(("mscale", "mscale_all_dim"), rules.NOT_NEGATIVE),  # 0 counts as not given
}
BESIDE = (  # keys of a section that may stand beside it, too
    "rope_theta", "partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings",
    "rope_local_base_freq",
)  # fmt: skip


def rule_of(key: str) -> rules.Rule:
    """Which values a key may have: any, where transformers and the methods do not know it."""
    own = {name: rule for _, rope_type in rope_types().values() for name, rule in rope_type.keys.items()}
    return (COMMON | OTHERS | own).get(key, rules.ANY)


def check_rope(parameters: Any) -> None:
    """The values of one RoPE section, flat: each one a value that its key may have, none missing.

    Raises:
        ValueError: with the key, the value, and what is allowed.
    """
    if not isinstance(parameters, Mapping):
        raise ValueError(f"it is {parameters!r}, which is no object of keys and values")
    for key, value in parameters.items():
        check_value(key, value)
    kind = parameters.get("rope_type", parameters.get("type"))
    _, rope_type = rope_types().get(str(kind), ("", None))
    lacking = [] if rope_type is None else [key for key in rope_type.required if key not in parameters]
    if lacking:
        raise ValueError(f"type {kind!r} lacks {', '.join(lacking)}")


def check_value(key: str, value: Any) -> None:
    """A `ValueError` for a value that the key may not have; null counts as not given."""
    rule = rule_of(key)
    if value is not None and not rule.allows(value):
        raise ValueError(f"{key} is {shown(value)}, it must be {rule.words}")


def factor_lists(section: Mapping[str, Any]) -> dict[str, list[float]]:
    """The lists of a section that hold a number for each frequency."""
    _, rope_type = rope_types().get(str(section.get("rope_type")), ("", None))
    keys = {} if rope_type is None else rope_type.keys
    return {key: section[key] for key, rule in keys.items() if rule is rules.FACTORS and section.get(key) is not None}


def sections(found: Any) -> dict[str, Any]:
    """The RoPE sections of `rope_parameters` by layer type; one that holds for all of them has the name ""."""
    if not isinstance(found, Mapping):
        return {} if found is None else {"": found}
    nested = {name: part for name, part in found.items() if isinstance(part, Mapping)}
    flat = {name: value for name, value in found.items() if name not in nested}
    return nested | ({"": flat} if flat else {})


def parts(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The values of config.json, and those within it that may be the text model's."""
    yield values
    for name in PARTS:
        if isinstance(values.get(name), Mapping):
            yield from parts(values[name])


def ropes(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every RoPE section of config.json."""
    found = [section for part in parts(values) for key in ROPES for section in sections(part.get(key)).values()]
    return [section for section in found if isinstance(section, Mapping)]


def shown(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
