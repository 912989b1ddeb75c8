"""config.json of a model: its values are checked when a folder is opened, before transformers sees them.

transformers checks some values late, only warns of others, or fails in the middle of a formula. Here every wrong
value is an error of one line. It names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longwave.files import read_json

ROPES = ("rope_scaling", "rope_parameters")  # the old name and the new one of a config's RoPE section
PARTS = ("text_config", "decoder", "thinker_config")  # where a config of several models has the text model
DTYPES = ("dtype", "torch_dtype")
SOURCE = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder", "trust_remote_code")
REQUIRED = {  # by transformers, beside what it fills in
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
# Errors that transformers raises for values that a formula or a class cannot take.
UNREADABLE = (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def is_number(value: Any) -> bool:
    """A finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_length(value: Any) -> bool:
    """A whole number of tokens, at least 1; transformers also takes 4096.0."""
    return is_positive(value) and value == int(value)


def are_positive(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_positive, value))


@dataclass(frozen=True)
class Rule:
    """The values that a key may have, as a check and in words."""

    allows: Callable[[Any], bool]
    words: str


POSITIVE = Rule(is_positive, "a number above 0")
SWITCH = Rule(lambda value: is_number(value) and value >= 0, "a number of at least 0")
LENGTH = Rule(is_length, "a whole number of tokens above 0")
FACTORS = Rule(are_positive, "a list of numbers above 0")
SECTIONS = Rule(
    lambda value: isinstance(value, list | tuple) and all(is_number(one) and one >= 0 for one in value),
    "a list of numbers of at least 0",
)
NAME = Rule(lambda value: isinstance(value, str), "the name of a rope type")
RULES = {
    **dict.fromkeys(("type", "rope_type"), NAME),
    "factor": Rule(lambda value: is_number(value) and value >= 1, "a number of at least 1"),
    **dict.fromkeys(("rope_theta", "attention_factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    **dict.fromkeys(("short_mscale", "long_mscale", "rope_local_base_freq"), POSITIVE),
    "partial_rotary_factor": Rule(lambda value: is_positive(value) and value <= 1, "a number above 0, at most 1"),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), SWITCH),  # 0 counts as not given
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), LENGTH),
    **dict.fromkeys(("short_factor", "long_factor"), FACTORS),
    "mrope_section": SECTIONS,
    "truncate": Rule(lambda value: isinstance(value, bool), "true or false"),
}
BESIDE = (  # keys of a RoPE section that may stand beside it, too
    "rope_theta", "partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings",
    "rope_local_base_freq",
)  # fmt: skip
SIZES = ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
NEEDED = ("rope_type", "rope_theta", "factor", "max_position_embeddings", "original_max_position_embeddings",
          "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "partial_rotary_factor")  # fmt: skip


def check_rope(parameters: Any) -> None:
    """Check the values of one RoPE section, flat: each is a value that its key may have, and none is missing.

    Raises:
        ValueError: with the key, the value, and what is allowed.
    """
    if not isinstance(parameters, Mapping):
        raise ValueError(f"it is {parameters!r}, which is no object of keys and values")
    for key, value in parameters.items():
        rule = RULES.get(key)
        if value is not None and rule is not None and not rule.allows(value):
            raise ValueError(f"{key} is {_shown(value)}, it must be {rule.words}")
    kind = parameters.get("rope_type", parameters.get("type"))
    lacking = [key for key in REQUIRED.get(str(kind), ()) if key not in parameters]
    if lacking:
        raise ValueError(f"type {kind!r} lacks {', '.join(lacking)}")


def sections(found: Any) -> dict[str, Any]:
    """The RoPE sections of `rope_parameters` by layer type; a section for all layer types has the name ""."""
    if not isinstance(found, Mapping):
        return {} if found is None else {"": found}
    nested = {name: part for name, part in found.items() if isinstance(part, Mapping)}
    flat = {name: value for name, value in found.items() if name not in nested}
    return nested | ({"": flat} if flat else {})


@dataclass(frozen=True)
class ConfigFile:
    """config.json as it is written.

    Arguments:
        path: the folder, or the name on a hub.
        values: what the file holds.
        where: the arguments of `from_pretrained` that say where to get the file.
    """

    path: Path | str
    values: dict[str, Any]
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.path}/config.json" if isinstance(self.path, str) else str(self.path / "config.json")

    def check(self) -> None:
        """Every value that concerns RoPE, and the type of the weights.

        Raises:
            ValueError: in one line.
        """
        for part in _parts(self.values):
            for key in BESIDE:
                rule = RULES[key]
                if part.get(key) is not None and not rule.allows(part[key]):
                    self._refuse(f"{key} is {_shown(part[key])}, it must be {rule.words}")
            for key in SIZES:
                if is_number(part.get(key)) and part[key] < 0:  # other types than numbers are refused by transformers
                    self._refuse(f"{key} is {part[key]}, it must be a whole number above 0")
            for key in DTYPES:
                if part.get(key) is not None and not _is_dtype(part[key]):
                    self._refuse(
                        f"{key} is {_shown(part[key])}, it must be a type of torch such as float32 or bfloat16"
                    )
            for key in ROPES:
                for layer_type, section in sections(part.get(key) or {}).items():
                    try:
                        check_rope(section)
                    except ValueError as error:
                        self._refuse(f"{key}{layer_type and f'.{layer_type}'}: {error}")

    def build(self) -> PreTrainedConfig:
        """The config as transformers reads it, checked before and after.

        Raises:
            ValueError: in one line.
        """
        if not self.where.get("trust_remote_code"):  # other code may give a key another meaning
            self.check()
        with self.explained():
            config: PreTrainedConfig = AutoConfig.from_pretrained(self.path, **self.where)
            config.name_or_path = str(self.path)
        self._check_lists(config)
        return config

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error that transformers raises for values of the file into one line that names the file."""
        try:
            yield
        except UNREADABLE as error:
            raise ValueError(self.complaint(error)) from error

    def complaint(self, error: Exception) -> str:
        """The error that transformers raised for values of the file, in one line."""
        return f"{self.name}: transformers {self._reason(error)}. Correct the file."

    def _reason(self, error: Exception) -> str:
        lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[-1 if isinstance(error, StrictDataclassError) else 0].rstrip(".")
        reason = reason.removeprefix("ValueError: ").removeprefix("TypeError: ")  # inside a StrictDataclassError
        nulls = self._nulls() if "None" in reason else []
        if nulls:
            return f"needs a value where {', '.join(nulls)} is null ({reason})"
        if isinstance(error, KeyError):
            kinds = {str(section.get("rope_type", section.get("type"))) for section in self._ropes()}
            if "su" in kinds:
                return "does not read its RoPE scaling of type 'su', which is called 'longrope' today"
            if reason in kinds:
                known = ", ".join(sorted(ROPE_INIT_FUNCTIONS))
                return f"does not know its {reason!r}, a type of RoPE scaling. Known types: {known}"
            if " " not in reason:
                return f"does not know its {reason!r}"
        return f"cannot use its values ({reason})"

    def _ropes(self) -> list[Mapping[str, Any]]:
        found = [
            section for part in _parts(self.values) for key in ROPES for section in sections(part.get(key)).values()
        ]
        return [section for section in found if isinstance(section, Mapping)]

    def _nulls(self) -> list[str]:
        places = [*_parts(self.values), *self._ropes()]
        return sorted({key for place in places for key in NEEDED if key in place and place[key] is None})

    def _check_lists(self, config: PreTrainedConfig) -> None:
        """Check the lengths of lists: transformers only warns of a wrong length, and then fails in the product."""
        text: Any = config.get_text_config(decoder=True)
        found = getattr(text, "rope_parameters", None)
        if not isinstance(found, Mapping) or found.get("rope_type") != "longrope":
            return
        heads = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        pairs = (int(heads * (found.get("partial_rotary_factor") or 1.0)) + 1) // 2
        for key in ("short_factor", "long_factor"):
            if len(found[key]) != pairs:
                self._refuse(f"{key} has {len(found[key])} numbers, this model has {pairs} frequencies")

    def _refuse(self, what: str) -> None:
        raise ValueError(f"{self.name}: {what}. Correct the file.")


def open_config(path: Path | str, arguments: Mapping[str, Any] | None = None) -> ConfigFile:
    """config.json of a folder or of a name on the hub.

    Arguments:
        arguments: of `from_pretrained`; only those that say where the file is are used.

    Raises:
        ValueError: if the file is no JSON object. OSError: if there is no file.
    """
    where = {name: value for name, value in (arguments or {}).items() if name in SOURCE}
    if "subfolder" not in where and (Path(path) / "config.json").is_file():
        return ConfigFile(Path(path), read_config(Path(path)), where)
    values, _ = PreTrainedConfig.get_config_dict(path, **where)
    if not values:  # so transformers says that there is no file
        raise OSError(f"{path} holds no config.json. Restore it, or save the model again.")
    return ConfigFile(str(path), values, where)


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a folder's config.json, unchecked."""
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'} holds no object of keys and values. Restore the file.")
    return values


def _parts(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config itself, and the configs within it that may be the text model's."""
    yield values
    for name in PARTS:
        if isinstance(values.get(name), Mapping):
            yield from _parts(values[name])


def _is_dtype(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)
    )


def _shown(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
