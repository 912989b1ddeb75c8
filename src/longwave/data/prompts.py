"""The token ids of a prompt, and the check that the model has embedding rows for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

PROBE = "a"  # any text will do: the tokenizer adds the same special tokens before and behind every text
NAMED = 3  # number of ids that an error names one by one


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a model is to continue.

    Special tokens that the tokenizer puts in front (`<s>`) stay. Special tokens that it appends are left out: they tell
    the model that the text is over. T5's tokenizer and some of Llama's append one (`</s>`).
    """
    ids = _ids(tokenizer, text)
    return ids[: len(ids) - closing_length(tokenizer)]


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at the start of a prompt made of pieces: the ids that the tokenizer puts there, or else its BOS token."""
    front, _ = _frame(tokenizer)
    if front or tokenizer.bos_token_id is None:
        return front
    return [int(tokenizer.bos_token_id)]


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat whose next message is the assistant's, by the tokenizer's template.

    Raises:
        ValueError: what the template says against the messages, or how it fails.
    """
    from jinja2 import TemplateError

    try:
        found: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # a template is a program, and may fail as any program does
        if type(error) is TemplateError:  # its own words: it takes no system messages, say
            raise ValueError(f"the tokenizer's chat template refuses these messages: {error}") from None
        raise ValueError(
            f"the tokenizer's chat template fails ({type(error).__name__}: {' '.join(str(error).split())}). "
            f"Correct it in chat_template.jinja or tokenizer_config.json of {tokenizer.name_or_path}."
        ) from None
    return list(found["input_ids"])


def closing_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of special tokens that the tokenizer appends to a text."""
    return len(_frame(tokenizer)[1])


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hex SHA-256 of everything in the tokenizer that changes the ids of a text. A copy in another folder has the same.

    None for a slow tokenizer, which cannot be written as one text.
    """
    if not tokenizer.is_fast:
        return None
    ends = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    return hashlib.sha256(f"{ends} {tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()


def check_ids(ids: Tensor | Iterable[int], model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse token ids without an embedding in the model, before the model runs on them.

    A tokenizer may hold more tokens than the model has rows, and still work. Gemma 3 1B has a token for images, which
    no text contains. So the ids of a text are checked, and not all ids of the tokenizer.

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
    """Special tokens that the tokenizer puts in front of every text, and behind it."""
    whole, plain = _ids(tokenizer, PROBE), _ids(tokenizer, PROBE, add_special_tokens=False)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []  # it reads the probe in two ways, so its special tokens cannot be told apart


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, verbose=False, **options)["input_ids"])
