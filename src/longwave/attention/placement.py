"""Where the queries and keys of a forward stand in every band: worked out once, and used by all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longwave.attention.bands import Band
from longwave.attention.documents import Documents
from longwave.attention.spectrum import Spectrum, Turn

SMALLEST = 64  # columns that all queries of a tile see: with fewer, one masked call is cheaper than three


class Tile(NamedTuple):
    """The columns that some neighbouring queries see.

    Arguments:
        start, stop: those that any of them sees.
        first, last: those that all of them see; both are `stop` where masks are cheaper than three kernel calls.
    """

    start: int
    stop: int
    first: int
    last: int


class Turns:
    """cos and sin for the keys of a band, worked out for the columns that are asked for.

    Arguments:
        make: from columns to their cos and sin.
        count: of all columns.
    """

    def __init__(self, make: Callable[[slice], Turn], count: int) -> None:
        self.make, self.count = make, count
        self.made: dict[tuple[int, int], Turn] = {}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.of(slice(0, self.count)))

    def of(self, columns: slice) -> Turn:
        """The first layer that asks works them out."""
        key = columns.start, columns.stop
        if key not in self.made:
            self.made[key] = self.make(columns)
        return self.made[key]


@dataclass(frozen=True, eq=False)
class Placed:
    """A band of one forward.

    Arguments:
        low, high: the columns of each query's keys, low <= column < high, int64 [B or 1, n].
        query: cos and sin that turn the queries to their place.
        key: cos and sin for the keys of all columns; None where the keys lie there already.
        excess: ln(max(1, keys of the query / room)), [B or 1, 1, n]; None where mass never acts.
        hidden: columns between the keys of a row that hold none, bool [B or 1, m]; None where there are none.
    """

    low: Tensor
    high: Tensor
    query: Turn
    key: Turn | Turns | None
    excess: Tensor | None
    hidden: Tensor | None = None
    tiles: dict[tuple[int, int], Tile | None] = field(default_factory=dict, repr=False)
    masks: dict[tuple[int, int, int], Any] = field(default_factory=dict, repr=False)  # see `flex.block_mask`

    def turn_of(self, columns: slice) -> Turn:
        """cos and sin for the keys of some columns, where they do not lie at their places already."""
        assert self.key is not None
        if isinstance(self.key, Turns):
            return self.key.of(columns)
        cos, sin = self.key
        return cos[:, :, columns], sin[:, :, columns]

    def tile(self, rows: slice) -> Tile | None:
        """The columns of some queries; None if they see none. The first layer that asks works them out."""
        key = rows.start, rows.stop
        if key not in self.tiles:
            tile = _tile(self.low[:, rows], self.high[:, rows])
            if tile is not None and self.hidden is not None:
                tile = Tile(tile.start, tile.stop, tile.stop, tile.stop)
            self.tiles[key] = tile
        return self.tiles[key]

    def mask(self, rows: slice, columns: slice) -> Tensor:
        """Which of the columns the queries see, bool [B or 1, 1, rows, columns]."""
        column = torch.arange(columns.start, columns.stop, device=self.low.device)
        low, high = self.low[:, rows, None], self.high[:, rows, None]
        seen = (low <= column) & (column < high)
        if self.hidden is not None:
            seen = seen & ~self.hidden[:, None, columns]
        return seen[:, None]


def place(
    bands: tuple[Band, ...],
    spectrum: Spectrum,
    positions: Tensor,
    key_positions: Tensor,
    stored: Band | None = None,
    dtype: torch.dtype = torch.float64,
    documents: Documents | None = None,
) -> list[Placed]:
    """Place a forward in all bands.

    Arguments:
        bands: of one t.
        spectrum: the frequencies at this t.
        positions: of the queries, int64 [B or 1, n].
        key_positions: of the columns of keys, int64 [B or 1, m]; -1 where there is no key. Ascending in each row,
            apart from those.
        stored: the band by whose places queries and keys are rotated already; None if they are not rotated.
        dtype: of cos, sin and mass. Angles are worked out in float64 where the device has it.
        documents: of rows that hold several, where queries and keys are the same tokens. Positions then rise within
            each document.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    where, at = positions.to(wide), key_positions.to(wide)
    edges = Edges.of(key_positions, documents)
    hidden = edges.hidden
    before_query = 0.0 if stored is None else spectrum.phase(stored, stored.key(where))

    def turns(band: Band, columns: slice) -> Turn:
        seen = at[:, columns]
        before = 0.0 if stored is None else spectrum.phase(stored, stored.key(seen))
        return _turn(spectrum.phase(band, band.key(seen)) - before, dtype)

    scale = torch.as_tensor(spectrum.scaling, dtype=wide) ** 2
    placed = []
    for band in bands:
        low, high = (edges.column(edge(where)) for edge in (band.first, band.last))
        own = 1.0 if band.own else scale
        phase = spectrum.phase(band, band.query(where)) + band.lead * spectrum.own - before_query
        turned = stored is None or not _same_key(band, stored)
        key = Turns(partial(turns, band), at.shape[1]) if turned else None
        excess = None
        if band.room is not None:
            count = high - low if hidden is None else high - low - _between(hidden, low, high)
            excess = (count.to(wide) / band.room).clamp(min=1.0).log()[:, None].to(dtype)
        placed.append(Placed(low, high, _turn(phase, dtype, own), key, excess, hidden))
    return placed


@dataclass(frozen=True, eq=False)
class Edges:
    """Finds the columns at which the keys of a query begin and end.

    Arguments:
        rising: positions of the columns that rise along the row, int64 [B, m].
        hidden: columns between the keys of a row that hold none, bool [B, m]; None where there are none.
        documents: of rows that hold several.
        width: more than any position in a document.
    """

    rising: Tensor
    hidden: Tensor | None
    documents: Documents | None = None
    width: int = 0

    @classmethod
    def of(cls, key_positions: Tensor, documents: Documents | None) -> Edges:
        if documents is None:
            return cls(*_ascending(key_positions))
        width = int(key_positions.max()) + 1
        return cls(documents.rising(key_positions, width).contiguous(), None, documents, width)

    def column(self, positions: Tensor) -> Tensor:
        """The first column, of the query's document, whose key is not before the position, int64 [B, n]."""
        wanted = positions.clamp(min=0).to(torch.int64).expand(self.rising.shape[0], -1)
        if self.documents is not None:
            wanted = self.documents.rising(wanted.clamp(max=self.width), self.width)
        return torch.searchsorted(self.rising, wanted.contiguous())


def _same_key(band: Band, stored: Band) -> bool:
    return band is stored or (band.key is stored.key and band.own == stored.own)


def _turn(phase: Tensor, dtype: torch.dtype, scale: float | Tensor = 1.0) -> Turn:
    return (phase.cos() * scale)[:, None].to(dtype), (phase.sin() * scale)[:, None].to(dtype)


def _tile(low: Tensor, high: Tensor) -> Tile | None:
    if low.numel() == 1:
        start, stop = int(low), int(high)
        return Tile(start, stop, start, stop) if start < stop else None
    empty = high <= low
    if bool(empty.all()):
        return None
    start, stop = int(low[~empty].min()), int(high[~empty].max())
    first, last = int(low.max()), int(high.min())
    if bool(empty.any()) or (last - first < SMALLEST and (first, last) != (start, stop)):
        first = last = stop
    return Tile(start, stop, first, last)


def _ascending(key_positions: Tensor) -> tuple[Tensor, Tensor | None]:
    """Key positions that rise from column to column, and the columns between them that hold no key.

    Columns without a key in front of a row or behind it need no care: no query has them between its first and its last.
    """
    index = torch.arange(key_positions.shape[1], device=key_positions.device)
    there = key_positions >= 0
    last = torch.where(there, index, -1).amax(dim=1, keepdim=True)
    first = torch.where(there, index, key_positions.shape[1]).amin(dim=1, keepdim=True)
    hidden = ~there & (first < index) & (index < last)
    rising = torch.where(index > last, torch.iinfo(torch.int64).max, key_positions)
    if not bool(hidden.any()):
        return rising.contiguous(), None
    return rising.cummax(dim=1).values.contiguous(), hidden


def _between(hidden: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many columns without a key lie in each interval."""
    before = torch.nn.functional.pad(hidden.long().cumsum(1), (1, 0)).expand(low.shape[0], -1)
    return before.gather(1, high) - before.gather(1, low)
