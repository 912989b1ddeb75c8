"""What data hold: documents, their lengths, tokens, and what training at a length would use of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute

from longwave.data.chats import hold_chats
from longwave.data.documents import documents_of
from longwave.data.kinds import Parsing
from longwave.data.mixture import Part, parts_of
from longwave.data.tokens import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Inspection:
    """The lengths of the documents of one source.

    Arguments:
        part: the source and its share.
        sizes: of each document: int64 [documents].
        unit: of the sizes, `tokens` or, without a tokenizer, `characters`.
        empty: number of documents without text, which are left out.
        broken: number of lines that cannot be read.
    """

    part: Part
    sizes: np.ndarray
    unit: str
    empty: int
    broken: int

    @property
    def total(self) -> int:
        return int(self.sizes.sum())

    def histogram(self) -> list[dict[str, int]]:
        """Documents by length, from one power of two to the next, and what they hold in all."""
        power = np.frexp(np.maximum(self.sizes, 1))[1] - 1
        return [
            {
                "from": 1 << k,
                "documents": int((power == k).sum()),
                self.unit: int(self.sizes[power == k].sum()),
            }
            for k in range(int(power.min()), int(power.max()) + 1)
        ]

    def at(self, length: int) -> dict[str, Any]:
        """What training with windows of `length` tokens would use."""
        long = self.sizes[self.sizes >= length]
        return {
            "train_length": length,
            "windows": self.total // length,
            "dropped": self.total % length,
            "documents_at_least_as_long": len(long) / len(self.sizes),
            "tokens_in_them": int(long.sum()) / max(1, self.total),
        }

    def to_json(self, train_length: int | None) -> dict[str, Any]:
        """All of it as JSON values."""
        middle, most = np.percentile(self.sizes, [50, 90])
        return {
            "source": self.part.name,
            "share": self.part.share,
            "documents": len(self.sizes),
            "empty": self.empty,
            "broken_lines": self.broken,
            self.unit: self.total,
            "length": {
                "shortest": int(self.sizes.min()), "median": float(middle), "mean": float(self.sizes.mean()),
                "p90": float(most), "longest": int(self.sizes.max()),
            },
            "histogram": self.histogram(),
            **({} if train_length is None else {"training": self.at(train_length)}),
        }  # fmt: skip


def inspect(
    data: Iterable[Path | str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    parsing: Parsing | None = None,
    *,
    progress: bool = False,
) -> list[Inspection]:
    """The sources of a mixture, or the data as one source. Texts and tokens come from the same cache as in training.

    Arguments:
        data: files, folders, data sets of the hub; each may have a share.
        tokenizer: without one, lengths are in characters.
        parsing: how files are read; broken lines are skipped and counted if None.
        progress: show a bar while tokenising.
    """
    found = []
    for part in parts_of(data):
        if hold_chats(part.paths, parsing):
            raise ValueError(
                f"data {part.name} hold chats, and data inspect reads texts. `longwave train` says how many chats are "
                "longer than a row."
            )
        read = documents_of(part.paths, parsing=parsing or Parsing(strict=False))
        sizes = _characters(read.kept) if tokenizer is None else tokenise(read.kept, tokenizer, progress=progress).sizes
        unit = "characters" if tokenizer is None else "tokens"
        found.append(Inspection(part, sizes, unit, read.empty, len(read.broken)))
    return found


def _characters(documents: Dataset) -> np.ndarray:
    """Characters of each document: int64 [documents]."""
    batches = documents.with_format("arrow").iter(batch_size=1000)
    sizes = [pyarrow.compute.utf8_length(batch["text"]).to_numpy() for batch in batches]
    return np.concatenate(sizes).astype(np.int64)
