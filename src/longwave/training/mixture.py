"""Rows of several sources, mixed by shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longwave.data.mixture import BLOCK, quotas
from longwave.training.batches import PackedRows, collate
from longwave.training.draw import counter_generator


class MixedRows(PackedRows):
    """The rows of a whole run, each from one of several sources.

    Every block of 1,000 rows holds each source by its share, exactly, in an order drawn from (seed, block). The rows of
    a source follow one another as if they were alone. So the source and the place of row k depend on k alone: a
    resumed run goes on with the same rows, in any number of processes.

    Arguments:
        sources: the rows of each source, all of one length.
        shares: of each source; they sum to 1.
        items: rows that the run consumes in all.
        seed: of the order.
    """

    def __init__(self, sources: Sequence[PackedRows], shares: Sequence[float], items: int, seed: int) -> None:
        super().__init__(sources[0].rows, items, seed)
        self.sources, self.shares = sources, torch.tensor(shares, dtype=torch.float64)
        self.quotas = quotas(shares)
        self._block, self._places = -1, list[tuple[int, int]]()

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        source, number = self._place(item)
        return self.sources[source][number]

    def spans(self, count: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """As of `PackedRows`; the source of each longer row is drawn by the shares."""
        chosen = self.parts_of_spans(count, generator)
        return collate([self.sources[k].text(self.sources[k].starts(1, length, generator)[0], length) for k in chosen])

    def longest_document(self) -> int:
        parts = [*self.sources, *([] if self.replay is None else [self.replay])]
        return max(part.longest_document() for part in parts)

    @property
    def several(self) -> bool:
        return any(source.several for source in self.sources) or super().several

    def parts(self, items: Sequence[int]) -> list[int]:
        return [self._place(item)[0] for item in items]

    def parts_of_spans(self, count: int, generator: torch.Generator) -> list[int]:
        chosen: list[int] = torch.multinomial(self.shares, count, replacement=True, generator=generator).tolist()
        return chosen

    def _place(self, item: int) -> tuple[int, int]:
        """The source of a row, and the number of the row there."""
        block, place = divmod(item, BLOCK)
        if block != self._block:
            order = torch.randperm(BLOCK, generator=counter_generator(self.seed, "mixture", block))
            sources = torch.repeat_interleave(torch.tensor(self.quotas))[order].tolist()
            next_of, self._places = [block * quota for quota in self.quotas], []
            for source in sources:
                self._places.append((source, next_of[source]))
                next_of[source] += 1
            self._block = block
        return self._places[place]
