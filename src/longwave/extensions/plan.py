"""The plan of one forward under an attention method: which rows run at which t, and where they stand in the bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longwave.attention.bands import Band
from longwave.attention.documents import Documents
from longwave.attention.placement import Placed, place
from longwave.attention.rows import RowWise
from longwave.attention.spectrum import Spectrum
from longwave.extensions.selecting import Extent, extents_of


@dataclass(eq=False)
class Group:
    """The rows of a forward that run at one t.

    Arguments:
        rows: which ones, int64; None for all.
        t: n/L.
        bands: None at t = 1, where the model's own attention runs.
        spectrum: the frequencies of the bands.
        stored: the band by whose places queries and keys come rotated; None if they come unrotated.
    """

    rows: Tensor | None
    t: float
    bands: tuple[Band, ...] | None = None
    spectrum: Spectrum | None = None
    stored: Band | None = None
    placed: tuple[Any, list[Placed]] | None = field(default=None, repr=False)

    def of(self, tensor: Tensor) -> Tensor:
        """The group's rows of a tensor [batch or 1, ...]."""
        return tensor if self.rows is None or tensor.shape[0] == 1 else tensor[self.rows.to(tensor.device)]


@dataclass(eq=False)
class Plan:
    """One forward: its groups, and what its layers share.

    Arguments:
        positions: position ids of the queries, int64 [batch or 1, n].
        groups: every row is in one of them.
        documents: of rows that hold several; the rows are then in one group.
    """

    positions: Tensor
    groups: list[Group]
    documents: Documents | None = None
    embeddings: dict[Any, Any] = field(default_factory=dict)  # by type and device
    prompts: tuple[int, ...] = ()  # tokens of the prompts where `generate` runs
    extents: tuple[Any, list[Extent]] | None = None

    @property
    def plain(self) -> bool:
        """All rows run the model's own attention."""
        return all(group.bands is None for group in self.groups)

    def placed(self, group: Group, columns: Tensor, held: Tensor | None, dtype: torch.dtype) -> list[Placed]:
        """The group's rows in their bands, worked out by the first layer that asks."""
        if group.placed is None or group.placed[0] is not columns:
            assert group.bands is not None and group.spectrum is not None
            positions, keys = group.of(self.positions), group.of(columns[:, 0, 0])
            if held is None and keys.shape[1] == positions.shape[1]:
                keys = torch.where(keys >= 0, positions, keys)  # no cache: the same tokens, whose positions may skip
            elif not torch.equal(*(each.amax(1).expand(keys.shape[0]) for each in (keys, positions))):
                raise ValueError(
                    "position_ids do not continue those of the cache, which are 0, 1, 2, ... for the tokens of a row. "
                    "Leave position_ids out, or pass the whole text without a cache."
                )
            if held is not None:
                keys = keys[:, held.to(keys.device)]
            if self.documents is None:
                keys = _one_row(keys)
                positions = _one_row(positions) if keys.shape[0] == 1 else positions
            rows = max(keys.shape[0], positions.shape[0])
            at, of_keys = positions.expand(rows, -1), keys.expand(rows, -1)
            found = place(group.bands, group.spectrum, at, of_keys, group.stored, dtype, self.documents)
            group.placed = columns, found
        return group.placed[1]

    def rows_of(self, group: Group, method: RowWise, columns: Tensor) -> dict[int, Extent]:
        """Where each row of the group lies, by its number, worked out by the first layer that asks."""
        if self.extents is None or self.extents[0] is not columns:
            self.extents = columns, extents_of(method, self.positions, columns[:, 0, 0], self.prompts)
        every = self.extents[1]
        return {row: every[row] for row in (range(len(every)) if group.rows is None else group.rows.tolist())}


def of_columns(mask: Tensor | None, held: Tensor | None) -> Tensor | None:
    """The part of a mask that is about the columns that a cache holds."""
    return mask if mask is None or held is None else mask[..., held.to(mask.device)]


def _one_row(positions: Tensor) -> Tensor:
    """One row for all, where all rows are alike."""
    if positions.shape[0] > 1 and bool((positions == positions[:1]).all()):
        return positions[:1]
    return positions


def together(groups: Sequence[Group], parts: Sequence[Any]) -> Any:
    """Results of groups in the order of the batch."""
    if groups[0].rows is None:
        return parts[0]
    order = torch.cat([group.rows for group in groups if group.rows is not None]).argsort()
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[order.to(parts[0].device)]
    return tuple(torch.cat(columns)[order.to(columns[0].device)] for columns in zip(*parts, strict=True))
