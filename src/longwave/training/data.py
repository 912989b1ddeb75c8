"""Rows of token ids for the Trainer, in an order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longwave.training.positions import counter_generator


def pack(stream: Tensor, length: int) -> Tensor:
    """Cut a token stream [tokens] into rows [rows, length]; what is left at the end is dropped.

    Raises:
        ValueError: if the stream is shorter than one row.
    """
    rows = stream.numel() // length
    if not rows:
        raise ValueError(
            f"train length {length} is more than the data holds ({stream.numel()} tokens). "
            "Train at a shorter length or pass more --data."
        )
    return stream[: rows * length].view(rows, length)


class PackedRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of a whole run, epoch after epoch, each in a new order.

    Item k is row π_e(k mod rows) of epoch e = ⌊k/rows⌋, with π_e a permutation drawn from (seed, e).
    The Trainer reads it in sequence as one long epoch: optimizer steps never straddle a boundary, and
    a resumed run finds its place by counting.

    Arguments:
        rows: token ids [rows, length].
        items: rows that the run consumes in all.
        seed: of the permutations.
    """

    def __init__(self, rows: Tensor, items: int, seed: int) -> None:
        self.rows, self.items, self.seed = rows, items, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        epoch, place = divmod(item, len(self.rows))
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.rows), generator=counter_generator(self.seed, epoch))
            self._epoch = epoch
        return {"input_ids": self.rows[self._order[place]]}

    def spans(self, count: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch of `count` longer rows, from anywhere in the stream: what `collate` returns, [count, length]."""
        stream = self.rows.flatten()
        starts = torch.randint(0, stream.numel() - length + 1, (count,), generator=generator)
        return collate([{"input_ids": stream[start : start + length]} for start in starts])


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows to input ids, labels and an attention mask, each [batch, length].

    The mask of ones is not redundant. Without one, transformers takes a jump in the position ids for
    the start of another packed sequence and hides what stands before it.
    """
    input_ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": input_ids, "labels": input_ids, "attention_mask": torch.ones_like(input_ids)}
