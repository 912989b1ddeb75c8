"""Where a tokenizer meets a model: the ids that a prompt is made of, and whether the model has rows for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

PROBE = "a"  # any text will do: what stands before and behind its own ids, the tokenizer adds to every text
NAMED = 3  # ids that an error names one by one


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a model is to continue.

    Special tokens that the tokenizer puts in front (`<s>`) stay. Those that it appends (`</s>`, as T5's and some of
    Llama's tokenizers do) are left out: to the model, they say that the text is over.
    """
    ids = _ids(tokenizer, text)
    return ids[: len(ids) - closing_length(tokenizer)]


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at the start of a prompt that is put together from pieces: the tokenizer's own, or else its BOS token."""
    front, _ = _frame(tokenizer)
    if front or tokenizer.bos_token_id is None:
        return front
    return [int(tokenizer.bos_token_id)]


def closing_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer appends to a text."""
    return len(_frame(tokenizer)[1])


def identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hex SHA-256 of what decides how a text is read: the same for a copy in another folder.

    None for a slow tokenizer, which cannot be written as one text.
    """
    if not tokenizer.is_fast:
        return None
    ends = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    return hashlib.sha256(f"{ends} {tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()


def check_ids(ids: Tensor | Iterable[int], model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse token ids that the model has no embedding for, before the model is run on them.

    A tokenizer may hold more tokens than the model has rows, and work all the same: Gemma 3 1B has one for images
    that no text contains. So this is about the ids of a text, not about all that a tokenizer could say.

    Arguments:
        ids: of any shape.
        model: its embedding may be on the meta device.
        tokenizer: names the tokens in the message.

    Raises:
        ValueError: naming the ids, the number of rows, and what to do.
    """
    import torch

    tensor = ids if isinstance(ids, torch.Tensor) else torch.tensor(list(ids), dtype=torch.long)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    rows = len(embedding.get_parameter("weight"))
    if not tensor.numel() or (largest := int(tensor.max())) < rows:
        return
    lacking = sorted(set(tensor[tensor >= rows].tolist()))
    names = [str(id) if tokenizer is None else _name(tokenizer, id) for id in lacking[:NAMED]]
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    raise ValueError(
        f"the tokenizer's ids reach {largest} but the model knows {rows}: there is no embedding row for "
        f"{', '.join(names)}{more}. Use the model's own tokenizer, or give new tokens rows with "
        f"model.resize_token_embeddings({largest + 1}) and save the model."
    )


def _name(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(id)
    return str(id) if token is None else f"{id} ({token})"


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens in front of every text, and behind it."""
    whole, plain = _ids(tokenizer, PROBE), _ids(tokenizer, PROBE, add_special_tokens=False)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []  # it reads the probe in two ways: nothing can be told apart


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, verbose=False, **options)["input_ids"])
