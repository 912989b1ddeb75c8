"""Documents inside packed rows: which of them each token belongs to, and where their tokens are said to stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from longwave.schedule import tokens_at
from longwave.training.draw import POSITIONS, LengthSampler

IGNORED = -100  # the label of a token that the loss leaves out


@dataclass(frozen=True, eq=False)
class Marks:
    """What training knows about the tokens of a packed stream, beside their ids.

    Arguments:
        starts: the place where each document starts, int64 [documents], ascending; None to join all documents.
        learned: whether the loss counts a token, bool [tokens]; None to count all.
        by_rows: the stream was packed row by row, so that a longer window begins where a row begins.
    """

    starts: np.ndarray | None
    learned: np.ndarray | None = None
    by_rows: bool = False

    @property
    def several(self) -> bool:
        """Whether there is more than one document to keep apart."""
        return self.starts is not None and len(self.starts) > 1

    def longest(self, tokens: int) -> int:
        """Tokens of the longest document in a stream of so many tokens, of those that the loss counts a token of."""
        if self.starts is None:
            return tokens
        starts = self.starts[self.starts < tokens]
        sizes = np.diff(starts, append=tokens)
        if self.learned is not None:  # what fills a row up is no document
            sizes = sizes * np.logical_or.reduceat(self.learned[:tokens], starts)
        return int(sizes.max())

    def of(self, first: int, ids: Tensor) -> dict[str, Tensor]:
        """`document_ids` and `labels` of the token ids [n] that begin at the place `first`.

        A document's first token is no label: nothing before it is the document's own.
        """
        labels, found = ids.clone(), {}
        if self.learned is not None:
            labels[torch.from_numpy(~self.learned[first : first + len(ids)])] = IGNORED
        if self.starts is not None:
            numbers = np.searchsorted(self.starts, np.arange(first, first + len(ids)), side="right")
            documents = torch.from_numpy(numbers - numbers[0])
            labels[1:][documents.diff() > 0] = IGNORED
            found["document_ids"] = documents
        return found | {"labels": labels}


def within_documents(
    sampler: LengthSampler, t: float, positions: Tensor, documents: Tensor | None, generator: Generator
) -> Tensor:
    """The position ids of a micro-batch, drawn for its documents: int64 [rows, n].

    A document is spread as a row is: from 0 to at most t·L, by the same rule. So the frequencies at t meet every
    distance, however short the documents are. A document has its share of a row's chunks, and two at least. Rows of one
    document keep their draw, and documents of a real window have no gaps.

    Arguments:
        sampler: that has drawn t and the positions.
        positions: of the rows, int64 [rows, n].
        documents: the document of each token, int64 [rows, n]; None where each row is one document.
    """
    if documents is None:
        return positions
    tokens, found = positions.shape[1], positions.clone()
    skips = bool((positions[:, -1] >= tokens).any())
    limit = max(tokens, tokens_at(t, sampler.original_length))
    for row, ids in enumerate(documents):
        sizes = ids.bincount().tolist()
        if len(sizes) == 1:
            continue
        own = []
        for size in sizes:
            chunks = min(sampler.chunks, max(2, round(sampler.chunks * size / tokens)))
            rule = POSITIONS[sampler.positions if skips and size > 1 else "none"]
            own.append(rule(1, size, limit, generator, chunks)[0])
        found[row] = torch.cat(own)
    return found
