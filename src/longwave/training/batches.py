"""The data of the Trainer: rows of token ids, and micro-batches. t and positions are drawn before the rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longwave.training.draw import Draw, LengthSampler, counter_generator


def pack(stream: Tensor, length: int) -> Tensor:
    """Cut a token stream [tokens] into rows [rows, length]; the rest at the end is dropped.

    Raises:
        ValueError: if the stream is shorter than one row.
    """
    rows = stream.numel() // length
    if not rows:
        raise ValueError(
            f"a row of {length} tokens is more than the data holds ({stream.numel()} tokens). "
            "Train at a shorter length or pass more --data."
        )
    return stream[: rows * length].view(rows, length)


class PackedRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of a whole run, epoch after epoch, each in a new order.

    Item k is row π_e(k mod rows) of epoch e = ⌊k/rows⌋, with π_e a permutation drawn from (seed, e).
    The Trainer reads the items in sequence as one long epoch. Optimizer steps never straddle a boundary, and a
    resumed run finds its place by counting.

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


class MicroBatches(torch.utils.data.Dataset[int]):
    """The micro-batches of a run. Items are numbers. `collate` first draws t and positions, and then reads the rows.

    Micro-batch g of the run is number g mod `per_step` of step ⌊g / per_step⌋. With n processes it goes to process
    g mod n. Its draw and its rows depend on g alone: not on n, on earlier loads or on the worker.

    Arguments:
        rows: the rows of the run; item k stands for row k.
        sampler: draws t and positions.
        size: rows of a micro-batch.
        per_step: micro-batches of an optimizer step, in all processes together.
    """

    def __init__(self, rows: PackedRows, sampler: LengthSampler, *, size: int, per_step: int = 1) -> None:
        self.rows, self.sampler, self.size, self.per_step = rows, sampler, size, per_step

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> int:
        return item

    def longest_window(self) -> int:
        """Real tokens of the longest row in all micro-batches."""
        length, steps = self.rows.rows.shape[1], len(self) // (self.size * self.per_step)
        windows = (self.sampler.window(self.size, length, step=step) for step in range(steps))
        return max(windows, default=length)

    def draw(self, number: int) -> Draw:
        """What is drawn for the micro-batch with this number in the run."""
        step, place = divmod(number, self.per_step)
        return Draw(*self.sampler(self.size, self.rows.rows.shape[1], step=step, place=place), number)

    def collate(self, items: Sequence[int]) -> dict[str, Any]:
        """The batch that `collate` makes of rows or of longer windows, with `position_ids` and the `draw`."""
        number, length = items[0] // self.size, self.rows.rows.shape[1]
        draw = self.draw(number)
        positions = draw.positions
        if positions.shape[1] == length:
            batch = collate([self.rows[item] for item in items])
        else:
            text = counter_generator(self.sampler.seed, "span", *divmod(number, self.per_step), 0)
            batch = self.rows.spans(positions.shape[0], positions.shape[1], text)
        return {**batch, "position_ids": positions, "draw": draw}


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows to input ids, labels and an attention mask, each [batch, length].

    The mask of ones is not redundant. Without one, transformers takes a jump in the position ids for
    the start of another packed sequence, and hides the tokens before the jump.
    """
    input_ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": input_ids, "labels": input_ids, "attention_mask": torch.ones_like(input_ids)}
