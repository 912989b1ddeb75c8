"""Attention methods that run row by row, and remember something of a row from one forward to the next."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from longwave.attention.bands import Attention
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed
from longwave.attention.spectrum import Spectrum, Turn


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence in one layer: its new queries, and all its keys so far, without padding.

    Arguments:
        q: [1, H, n, D], the last n of m tokens; k, v: [1, H_kv, m, D]. Head h reads the keys of head ⌊h/(H/H_kv)⌋.
        layout: which dimensions are turned.
        spectrum: the frequencies.
        scale: of all logits, 1/√D mostly.
        decoding: this is one token after a prompt; otherwise a prompt, or a part of one.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: Layout
    spectrum: Spectrum
    scale: float
    decoding: bool = False

    @property
    def stop(self) -> int:
        """The number of keys, m."""
        return self.k.shape[2]

    @property
    def start(self) -> int:
        """The position of the first query."""
        return self.k.shape[2] - self.q.shape[2]

    @property
    def positions(self) -> Tensor:
        """Of the queries, int64 [n]."""
        return torch.arange(self.start, self.stop, device=self.q.device)

    def part(self, first: int, stop: int) -> Row:
        """The queries first <= p < stop, and the keys up to the last of them."""
        queries = slice(first - self.start, stop - self.start)
        return replace(self, q=self.q[:, :, queries], k=self.k[:, :, :stop], v=self.v[:, :, :stop])

    def turn_between(self, x: Tensor, first: int) -> Tensor:
        """Keys at the places from `first` on, one after the other."""
        return self.layout.turn(x, *self.between(first, first + x.shape[2]))

    def aim_between(self, x: Tensor, first: int) -> Tensor:
        """Queries at the places from `first` on, as `aim` has it."""
        return self.layout.turn(x, *self.scaled(first, first + x.shape[2]))

    def scaled(self, first: int, stop: int) -> Turn:
        """`between` with the attention scaling of both sides of a logit."""
        (cos, sin), scale = self.between(first, stop), self.spectrum.scaling**2
        return cos * scale, sin * scale

    def between(self, first: int, stop: int) -> Turn:
        """cos and sin at the places first <= place < stop, [1, 1, n, R/2]."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        cos, sin = self.spectrum.between(first, stop, self.q.device, wide)
        return cos[None, None], sin[None, None]

    def turn(self, x: Tensor, places: Tensor) -> Tensor:
        """Queries or keys, which come unrotated, at their places: whole ones, int64 [n]."""
        return self.layout.turn(x, *self.rotation(places))

    def aim(self, x: Tensor, places: Tensor) -> Tensor:
        """Queries at their places, with the attention scaling that counts for both sides of a logit."""
        cos, sin = self.rotation(places)
        scale = self.spectrum.scaling**2
        return self.layout.turn(x, cos * scale, sin * scale)

    def rotation(self, places: Tensor) -> Turn:
        """cos and sin at whole places, [1, 1, n, R/2]."""
        cos, sin = self.spectrum.at(places, torch.promote_types(self.q.dtype, torch.float32))
        return cos[None, None], sin[None, None]

    def placed(self, query: Turn, key: Turn | None) -> Placed:
        """A band in which every query sees all keys up to itself."""
        return Placed(torch.zeros_like(self.positions)[None], self.positions[None] + 1, query, key, None)


@dataclass(frozen=True)
class RowWise(Attention):
    """An attention method that runs row by row, and remembers something of each row.

    What it remembers is never changed in place: rows may share it, as beams do.
    """

    remembers: ClassVar[bool] = True
    prefill_differs: ClassVar[bool] = True
    log_n: ClassVar[float] = 0.0
    croppable: ClassVar[bool] = True  # the memory can follow when the last tokens of a row are taken off its cache

    @property
    def stored(self) -> int | None:
        return None

    @abstractmethod
    def attend(self, row: Row, memory: Any) -> tuple[Tensor, Any]:
        """Attention of a row, [1, H, n, D], and what to remember; `memory` is None at first.

        Raises:
            ValueError: if the row has keys already and the method needs the memory of them.
        """

    def cropped(self, memory: Any, length: int) -> Any:
        """What remains of the memory when the row is cut to its first `length` tokens. Nothing by default."""
        return None
