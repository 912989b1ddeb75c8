"""Chats in tokens, by the tokenizer's template, and which tokens are the assistant's."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher

from longwave.data.bars import progress_bars
from longwave.data.tokens import TokenStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = re.compile(r"\{%-?\s*generation\b")
ENCODED = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "learned": datasets.List(datasets.Value("bool"))}
)


@dataclass(frozen=True, eq=False)
class ChatStream(TokenStream):
    """All chats as one sequence of token ids, a document each.

    Arguments:
        learned: whether a token is the assistant's, bool [tokens].
        fill: the token id that fills rows up.
    """

    learned: np.ndarray
    fill: int = 0


class ChatEncoder:
    """Messages -> token ids, and whether each is the assistant's.

    A template with `{% generation %}` says so itself. With any other one, the chat is rendered up to each message of
    the assistant, and with it: what comes in between is the assistant's. This is exact only where a longer chat begins
    as a shorter one does, in text and in tokens. Otherwise the chat is refused.

    Raises:
        ValueError: for a tokenizer without a template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError(
                "the data are chats, and the tokenizer has no chat template. Pass --chat-template with a file that "
                "holds one, or the tokenizer of a chat model."
            )
        self.tokenizer = tokenizer
        self.marked = GENERATION.search(tokenizer.chat_template) is not None

    def __call__(self, messages: list[dict[str, Any]], tools: Any = None) -> tuple[list[int], list[bool]]:
        """Token ids and whether each is the assistant's.

        Raises:
            ValueError: where that is not exact.
        """
        if self.marked:
            found: Any = self.tokenizer.apply_chat_template(
                messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            ids, learned = list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]]
        else:
            ids = self._ids(self._text(messages, tools))
            learned = [False] * len(ids)
            for number, message in enumerate(messages):
                if message["role"] == "assistant":
                    start = self._shared(ids, messages[:number], tools, messages, ask=True)
                    end = self._shared(ids, messages[: number + 1], tools, messages)
                    learned[start:end] = [True] * (end - start)
        if not any(learned):
            raise ValueError("the chat template gives the assistant no token of the chat")
        return ids, learned

    def _shared(
        self, ids: list[int], part: list[dict[str, Any]], tools: Any, whole: list[dict[str, Any]], ask: bool = False
    ) -> int:
        """How many tokens the chat has up to the end of `part`; with `ask` up to the assistant's turn after it."""
        text = self._text(part, tools, ask)
        begin = self._ids(text)
        if not self._text(whole, tools).startswith(text) or ids[: len(begin)] != begin:
            raise ValueError(
                "the chat template writes the beginning of this chat in another way than the whole chat, so the "
                "assistant's tokens cannot be told. Mark them in the template by {% generation %} ... "
                "{% endgeneration %}, and pass it by --chat-template"
            )
        return len(begin)

    def _text(self, messages: list[dict[str, Any]], tools: Any, ask: bool = False) -> str:
        if not messages:
            return ""
        found = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask)
        return str(found)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def chat_stream(chats: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False) -> ChatStream:
    """All chats as one sequence of token ids. `datasets.map` does the work, and caches it.

    Raises:
        ValueError: naming the chat whose assistant's tokens cannot be told exactly.
    """
    encoder = ChatEncoder(tokenizer)

    def encode(row: dict[str, str]) -> dict[str, Any]:
        try:
            ids, learned = encoder(**json.loads(row["chat"]))
        except Exception as error:  # a template raises errors of its own
            raise ValueError(f"data {row['at']}: {error}.") from None
        return {"input_ids": ids, "learned": learned}

    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else Hasher.hash(tokenizer)
    with progress_bars(progress):
        found = chats.map(
            encode,
            remove_columns=chats.column_names,
            features=ENCODED,
            new_fingerprint=Hasher.hash([chats._fingerprint, state, tokenizer.chat_template, "chat"]),
            desc="tokenising",
        )
    ids, learned = (_flat(found, column) for column in ("input_ids", "learned"))
    sizes = np.concatenate([np.empty(0, np.int64), *_sizes(found)])
    fill = next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0)
    return ChatStream(ids.astype(np.int32), sizes.cumsum() - sizes, learned.astype(bool), int(fill))


def _flat(found: datasets.Dataset, column: str) -> np.ndarray:
    chunks = found.data.column(column).chunks
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])


def _sizes(found: datasets.Dataset) -> list[np.ndarray]:
    return [chunk.value_lengths().to_numpy().astype(np.int64) for chunk in found.data.column("input_ids").chunks]
