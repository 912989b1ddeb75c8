"""What a comparison is planned with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sketch(Protocol):
    """A model, perhaps without its weights, and its tokenizer: what is planned with."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@dataclass(frozen=True, eq=False)
class Weightless:
    """A `Sketch` without weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
