"""What transformers raises for the values of config.json, in words that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longwave.checkpoints.rope_section import parts, ropes

# What transformers raises for values that a formula or a class cannot take.
UNREADABLE = (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
NEEDED = (
    "rope_type", "rope_theta", "factor", "max_position_embeddings", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "partial_rotary_factor",
)  # fmt: skip


def reason(error: Exception, values: Mapping[str, Any]) -> str:
    """The end of a sentence that begins with "transformers".

    Arguments:
        error: what transformers raised.
        values: of config.json.
    """
    said = _last_words(error)
    nulls = _nulls(values) if "None" in said else []
    if nulls:
        return f"needs a value where {', '.join(nulls)} is null ({said})"
    if isinstance(error, KeyError):
        kinds = {str(section.get("rope_type", section.get("type"))) for section in ropes(values)}
        if "su" in kinds:
            return "does not read its RoPE scaling of type 'su', which is called 'longrope' today"
        if said in kinds:
            known = ", ".join(sorted(ROPE_INIT_FUNCTIONS))
            return f"does not know its {said!r}, a type of RoPE scaling. Known types: {known}"
        if " " not in said:
            return f"does not know its {said!r}"
    return f"cannot use its values ({said})"


def _last_words(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = lines[-1 if isinstance(error, StrictDataclassError) else 0].rstrip(".")
    return said.removeprefix("ValueError: ").removeprefix("TypeError: ")  # inside a StrictDataclassError


def _nulls(values: Mapping[str, Any]) -> list[str]:
    places = [*parts(values), *ropes(values)]
    return sorted({key for place in places for key in NEEDED if key in place and place[key] is None})
