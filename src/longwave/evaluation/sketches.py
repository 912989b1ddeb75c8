"""A model with or without its weights: a comparison is planned with either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sketch(Protocol):
    """A model and its tokenizer. The model may be without its weights."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@dataclass(frozen=True, eq=False)
class Weightless:
    """A `Sketch` without weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
