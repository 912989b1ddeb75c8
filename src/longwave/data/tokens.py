"""The token stream that training and evaluation cut their windows from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch import Tensor

from longwave.data.bars import progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All documents as one sequence of token ids, each document followed by the end-of-text token.

    Arguments:
        ids: whole numbers [tokens].
        starts: int64 [documents], ascending: the place in `ids` where each document starts.
    """

    ids: np.ndarray
    starts: np.ndarray

    def tensor(self) -> Tensor:
        """The ids as a tensor [tokens] over the same memory."""
        return torch.from_numpy(self.ids)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document: int64 [documents]."""
        return np.diff(self.starts, append=len(self.ids))


def token_stream(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False) -> Tensor:
    """All documents as one sequence of token ids, each document followed by the end-of-text token.

    `datasets.map` does the work. The cache key is made of the contents of the documents and of the tokenizer.

    Returns:
        int64, shape [tokens].
    """
    return stream_and_starts(documents, tokenizer, progress=progress)[0]


def stream_and_starts(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False
) -> tuple[Tensor, list[int]]:
    """The `token_stream` of documents, and the place in the stream where each document starts."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    tail = [] if end is None else [end]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return {"input_ids": [row + tail for row in ids["input_ids"]]}

    # A fast tokenizer's own hash changes when it is used, which would miss the cache every time.
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else Hasher.hash(tokenizer)
    with progress_bars(progress):
        tokens = documents.map(
            encode,
            batched=True,
            batch_size=64,
            remove_columns=documents.column_names,
            features=TOKENS,
            new_fingerprint=Hasher.hash([documents._fingerprint, state, tail]),
            desc="tokenising",
        )
    chunks = tokens.data.column("input_ids").chunks
    stream = np.concatenate([np.empty(0, np.int32), *(chunk.flatten().to_numpy() for chunk in chunks)])
    sizes = [size for chunk in chunks for size in chunk.value_lengths().to_pylist()]
    return torch.from_numpy(stream.astype(np.int64)), [0, *accumulate(sizes)][: len(sizes)]
