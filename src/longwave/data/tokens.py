"""The token stream that training and evaluation cut their windows from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch import Tensor

from longwave.data.bars import progress_bars
from longwave.data.encoding import encoder
from longwave.data.flat import cached, open_flat, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
BATCH_BYTES = 1 << 20  # text that is tokenised at a time: its tokens take some 100 times as much memory for a moment
PARALLEL_BYTES = 32 << 20  # text from which on it pays to start processes
Column = dict[str, list[Any]]


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All documents as one sequence of token ids, each document followed by the end-of-text token.

    Arguments:
        ids: int32 [tokens]. From the cache it is memory-mapped: processes share its pages.
        starts: int64 [documents], ascending: the place in `ids` where each document starts.
    """

    ids: np.ndarray
    starts: np.ndarray

    def tensor(self) -> Tensor:
        """The ids as an int32 tensor [tokens] over the same memory. Convert a window of it with `.long()`."""
        return torch.from_numpy(self.ids)

    @classmethod
    def open(cls, file: Path | str) -> TokenStream:
        """A stream that another process made: its `file`."""
        return cls(*open_flat(file))

    @property
    def file(self) -> Path | None:
        """Where the ids lie; None for ids in memory."""
        return Path(self.ids.filename) if isinstance(self.ids, np.memmap) and self.ids.filename else None

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document, its end-of-text token included: int64 [documents]."""
        return np.diff(self.starts, append=len(self.ids))


def tokenise(
    documents: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: bool = False,
    processes: int | None = None,
) -> TokenStream:
    """The token stream of documents, made once by one process, and memory-mapped from the cache by all.

    `datasets.map` does the work. The cache key is made of the contents of the documents and of the tokenizer. The ids
    lie in one file beside the documents' own cache. Documents without a cache have their tokens in memory.

    Arguments:
        progress: show a bar.
        processes: that tokenise; by default one for few documents, otherwise one for each processor. The result does
            not depend on it.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    tail = [] if end is None else [end]
    # A fast tokenizer's own hash changes when it is used, which would miss the cache every time.
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else Hasher.hash(tokenizer)
    key = Hasher.hash([documents._fingerprint, state, tail])

    def encode(batch: Column) -> Column:
        return {"input_ids": [np.asarray(row + tail, np.int32) for row in encoder(tokenizer)(batch["text"])]}

    def mapped() -> datasets.Dataset:
        size = documents.data.nbytes
        batch = max(1, min(1000, BATCH_BYTES * len(documents) // max(1, size)))
        number = processes or (processors() if size >= PARALLEL_BYTES else 1)
        with progress_bars(progress):
            return documents.map(
                encode,
                batched=True,
                batch_size=batch,
                writer_batch_size=batch,
                num_proc=number if number > 1 else None,
                remove_columns=documents.column_names,
                features=TOKENS,
                new_fingerprint=key,
                desc="tokenising",
            )

    return TokenStream(*cached(documents, key, mapped))


def token_stream(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False) -> Tensor:
    """All documents as one sequence of token ids, each document followed by the end-of-text token.

    Returns:
        int64, shape [tokens]: a copy in memory, other than `tokenise`.
    """
    return stream_and_starts(documents, tokenizer, progress=progress)[0]


def stream_and_starts(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False
) -> tuple[Tensor, list[int]]:
    """The `token_stream` of documents, and the place in the stream where each document starts."""
    stream = tokenise(documents, tokenizer, progress=progress)
    return stream.tensor().long(), stream.starts.tolist()
