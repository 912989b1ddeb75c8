"""config.json of a model: its values are checked when a folder is opened, before transformers sees them.

transformers checks some values late, only warns of others, or fails in the middle of a formula. Here every wrong
value is an error of one line. It names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from longwave.checkpoints.complaints import UNREADABLE, reason
from longwave.checkpoints.hub import HUB
from longwave.checkpoints.rope_section import (
    BESIDE,
    ROPES,
    check_rope,
    check_value,
    factor_lists,
    parts,
    sections,
    shown,
)
from longwave.files import read_object
from longwave.layout import CONFIG
from longwave.rules import is_number

DTYPES = ("dtype", "torch_dtype")
SOURCE = (*HUB, "subfolder", "trust_remote_code")  # arguments of `from_pretrained` that say where the file is
SIZES = (
    "hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip


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
        return "/".join(part for part in (str(self.path), self.where.get("subfolder"), CONFIG) if part)

    def check(self) -> None:
        """Every value that concerns RoPE, and the type of the weights.

        Raises:
            ValueError: in one line.
        """
        try:
            for part in parts(self.values):
                check_values(part)
        except ValueError as error:
            self._refuse(str(error))

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
        """What transformers raised for the values of the file, in one line."""
        return f"{self.name}: transformers {reason(error, self.values)}. Correct the file."

    def _check_lists(self, config: PreTrainedConfig) -> None:
        """Check the lengths of lists: transformers only warns of a wrong length, and then fails in the product."""
        text: Any = config.get_text_config(decoder=True)
        found = getattr(text, "rope_parameters", None)
        if not isinstance(found, Mapping) or not (lists := factor_lists(found)):
            return
        pairs = (int(head_dim(text) * (found.get("partial_rotary_factor") or 1.0)) + 1) // 2
        for key, factors in lists.items():
            if len(factors) != pairs:
                self._refuse(f"{key} has {len(factors)} numbers, this model has {pairs} frequencies")

    def _refuse(self, what: str) -> None:
        raise ValueError(f"{self.name}: {what}. Correct the file.")


def check_values(part: Mapping[str, Any]) -> None:
    """The values of one model in config.json: what concerns RoPE, sizes, the type of the weights.

    Raises:
        ValueError: with the key, the value, and what is allowed.
    """
    for key in BESIDE:
        check_value(key, part.get(key))
    for key in SIZES:
        if is_number(part.get(key)) and part[key] <= 0:  # other types than numbers are refused by transformers
            raise ValueError(f"{key} is {part[key]}, it must be a whole number above 0")
    for key in DTYPES:
        if part.get(key) is not None and not _is_dtype(part[key]):
            raise ValueError(f"{key} is {shown(part[key])}, it must be a type of torch such as float32 or bfloat16")
    for key in ROPES:
        for layer_type, section in sections(part.get(key) or {}).items():
            try:
                check_rope(section)
            except ValueError as error:
                raise ValueError(f"{key}{layer_type and f'.{layer_type}'}: {error}") from None


def open_config(path: Path | str, arguments: Mapping[str, Any] | None = None) -> ConfigFile:
    """config.json of a folder or of a name on the hub.

    Arguments:
        arguments: of `from_pretrained`; only those that say where the file is are used.

    Raises:
        ValueError: if the file is no JSON object. OSError: if there is no file.
    """
    where = {name: value for name, value in (arguments or {}).items() if name in SOURCE}
    if "subfolder" not in where and (Path(path) / CONFIG).is_file():
        return ConfigFile(Path(path), read_object(Path(path) / CONFIG), where)
    values, _ = PreTrainedConfig.get_config_dict(path, **where)
    if not values:  # which is how transformers says that there is none
        raise OSError(f"{path} holds no {CONFIG}. Restore it, or save the model again.")
    return ConfigFile(str(path), values, where)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)
    )


def head_dim(config: Any) -> int:
    """Dimensions of an attention head, from the text model's config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
