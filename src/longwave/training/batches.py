"""The data of the Trainer: rows of token ids, and micro-batches. t and positions are drawn before the rows are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from longwave.training.documents import IGNORED, Marks, within_documents
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
        rows: token ids [rows, length], of any integer type; memory-mapped, as a rule.
        items: rows that the run consumes in all.
        seed: of the permutations.
        marks: where documents start in the stream of all rows, and which tokens the loss counts; None for one document
            whose tokens all count.
        often: the number of each row, once for each time that an epoch reads it; None for once each.

    Attributes:
        replay: the rows of micro-batches without gaps, if these are others.
    """

    replay: PackedRows | None = None

    def __init__(
        self, rows: Tensor, items: int, seed: int, marks: Marks | None = None, often: Tensor | None = None
    ) -> None:
        self.rows, self.items, self.seed, self.marks, self.often = rows, items, seed, marks, often
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.rows.shape[1]

    def parts(self, items: Sequence[int]) -> list[int]:
        """Which part of a mixture each of these rows is of."""
        return [0] * len(items)

    def parts_of_spans(self, count: int, generator: torch.Generator) -> list[int]:
        """Which part of a mixture each of the longer rows is of that `spans` reads with the same generator."""
        return [0] * count

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        count = len(self.rows) if self.often is None else len(self.often)
        epoch, place = divmod(item, count)
        if epoch != self._epoch:
            order = torch.randperm(count, generator=counter_generator(self.seed, epoch))
            self._order, self._epoch = order if self.often is None else self.often[order], epoch
        return self.text(int(self._order[place]) * self.length, self.length)

    def spans(self, count: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch of `count` longer rows, from anywhere in the stream: what `collate` returns, [count, length]."""
        return collate([self.text(start, length) for start in self.starts(count, length, generator)])

    def starts(self, count: int, length: int, generator: torch.Generator) -> list[int]:
        """The places in the stream where longer rows begin."""
        step = self.length if self.marks is not None and self.marks.by_rows else 1
        last = (self.rows.numel() - length) // step
        if self.often is None:
            starts = torch.randint(0, last + 1, (count,), generator=generator)
        else:
            chosen = self.often[torch.randint(0, len(self.often), (count,), generator=generator)]
            starts = chosen * self.length + torch.randint(0, self.length, (count,), generator=generator)
            starts = (starts // step).clamp(max=last)
        return [int(start) * step for start in starts]

    @property
    def several(self) -> bool:
        """Whether there are several documents to keep apart."""
        own = self.marks is not None and self.marks.several
        return own or (self.replay is not None and self.replay.several)

    def longest_document(self) -> int:
        """Tokens of the longest document, the replay's included."""
        own = self.rows.numel() if self.marks is None else self.marks.longest(self.rows.numel())
        return own if self.replay is None else max(own, self.replay.longest_document())

    def text(self, first: int, length: int) -> dict[str, Tensor]:
        ids = self.rows.view(-1)[first : first + length].long()
        return {"input_ids": ids} if self.marks is None else {"input_ids": ids, **self.marks.of(first, ids)}


class MicroBatches(torch.utils.data.Dataset[int]):
    """The micro-batches of a run. Items are numbers. `collate` first draws t and positions, and then reads the rows.

    Micro-batch g of the run is number g mod `per_step` of step ⌊g / per_step⌋. With n processes it goes to process
    g mod n. Its draw and its rows depend on g alone: not on n, on earlier loads or on the worker.
    Where `shards` processes share rows, each micro-batch comes so many times in a row, so that it goes to that many
    neighbouring processes. Each makes its shard of it.

    Arguments:
        rows: the rows of the run; item k stands for row k.
        sampler: draws t and positions.
        size: rows of a micro-batch.
        per_step: micro-batches of an optimizer step, in all processes together.
        shards: processes that share a row.
    """

    def __init__(
        self, rows: PackedRows, sampler: LengthSampler, *, size: int, per_step: int = 1, shards: int = 1
    ) -> None:
        self.rows, self.sampler, self.size, self.per_step, self.shards = rows, sampler, size, per_step, shards

    def __len__(self) -> int:
        return len(self.rows) * self.shards

    def __getitem__(self, item: int) -> int:
        return item

    def longest_window(self) -> int:
        """Real tokens of the longest row in all micro-batches, or of the longest document if that is shorter."""
        length, steps = self.rows.length, len(self.rows) // (self.size * self.per_step)
        windows = (self.sampler.window(self.size, length, step=step) for step in range(steps))
        return min(max(windows, default=length), self.rows.longest_document())

    def draw(self, number: int) -> Draw:
        """What is drawn for the micro-batch with this number in the run."""
        step, place = divmod(number, self.per_step)
        return Draw(*self.sampler(self.size, self.rows.length, step=step, place=place), number)

    def _text(self, number: int) -> torch.Generator:
        """What chooses the text of the longer windows of the micro-batch with this number in the run."""
        return counter_generator(self.sampler.seed, "span", *divmod(number, self.per_step), 0)

    def _rows(self, number: int) -> PackedRows:
        """The rows of the micro-batch with this number, if it has no longer windows."""
        replay, step = self.rows.replay, number // self.per_step
        return replay if replay is not None and self.sampler.is_short(step=step) else self.rows

    def used(self) -> Counter[int]:
        """Tokens of each part of the data in all micro-batches of the run; -1 stands for the replay."""
        found, length = Counter[int](), self.rows.length
        for number, first in enumerate(range(0, len(self.rows), self.size)):
            window = self.sampler.window(self.size, length, step=number // self.per_step)
            if window > length:
                parts = self.rows.parts_of_spans(self.size * length // window, self._text(number))
            elif self._rows(number) is self.rows:
                parts = self.rows.parts(range(first, first + self.size))
            else:
                parts = [-1] * self.size
            for part in parts:
                found[part] += window
        return found

    def collate(self, items: Sequence[int]) -> dict[str, Any]:
        """The batch that `collate` makes of rows or of longer windows, with `position_ids` and the `draw`.

        Where processes share rows it is a shard of that, as `shard_of` has it. The draw is of whole rows.
        """
        number, rank = divmod(items[0] // self.size, self.shards)
        draw, length = self.draw(number), self.rows.length
        t, positions = draw.t, draw.positions
        if positions.shape[1] == length:
            first, rows = number * self.size, self._rows(number)
            batch = collate([rows[item] for item in range(first, first + len(items))])
        else:
            batch = self.rows.spans(positions.shape[0], positions.shape[1], self._text(number))
        spread = counter_generator(self.sampler.seed, "documents", *divmod(number, self.per_step), 0)
        positions = within_documents(self.sampler, t, positions, batch.get("document_ids"), spread)
        batch["position_ids"] = positions
        own = batch if self.shards == 1 else shard_of(batch, rank, self.shards)
        return {**own, "draw": Draw(t, positions, number)}


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows to input ids, labels and an attention mask, each [batch, length], and ids of several documents.

    The mask of ones is not redundant. Without one, transformers takes a jump in the position ids for
    the start of another packed sequence, and hides the tokens before the jump.
    """
    input_ids = torch.stack([item["input_ids"] for item in items])
    labels = torch.stack([item.get("labels", item["input_ids"]) for item in items])
    batch = {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}
    if any(bool(item["document_ids"][-1] > 0) for item in items if "document_ids" in item):
        alone = torch.zeros_like(input_ids[0])  # a row of a source that is one document
        batch["document_ids"] = torch.stack([item.get("document_ids", alone) for item in items])
    return batch


def shard_of(batch: dict[str, Tensor], rank: int, count: int) -> dict[str, Tensor]:
    """The neighbouring tokens of each row that one of `count` processes has.

    `shift_labels` are the tokens that follow, also over the border to the next shard. `document_ids` stay those of
    whole rows, which attention sees.
    """
    following = pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    return {
        name: tensor if name == "document_ids" else tensor.chunk(count, dim=1)[rank].contiguous()
        for name, tensor in {**batch, "shift_labels": following}.items()
    }
