"""Texts to token ids, without what a stream of tokens does not need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], list[list[int]]]


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """The ids of texts, without special tokens in front or behind: as the tokenizer's own call returns them.

    The call of a fast tokenizer also finds the characters of each token, which takes half of the time or more. A fast
    tokenizer that does nothing of its own in Python is therefore asked for its ids alone.
    """

    def ids(texts: list[str]) -> list[list[int]]:
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(found["input_ids"])

    plain: Any = PreTrainedTokenizerFast
    if not isinstance(tokenizer, plain) or type(tokenizer)._encode_plus is not plain._encode_plus:
        return ids

    def ids_alone(texts: list[str]) -> list[list[int]]:
        ids(["a"])  # sets the tokenizer up as every call does: no truncation, no padding, how to read special tokens
        found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in found]

    return ids_alone
