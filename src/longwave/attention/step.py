"""A step of decoding: one query in each row, and a text of its own length before it.

`engine.attend` is for queries that stand one after another. Here each row reads the columns that its own query sees:
its near keys lie elsewhere than those of another row. What the columns are is worked out on the host: no device has to
wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longwave.attention.engine import Scoring, merge
from longwave.attention.kernels import with_lse
from longwave.attention.placement import Placed
from longwave.attention.spectrum import Turn


@dataclass(frozen=True, eq=False)
class StepBand:
    """A band of one step.

    Arguments:
        columns: of the keys: the same W for all rows, or int64 [B, W].
        seen: which of them a query sees, bool [B, 1, 1, W]; None for all.
        query: cos and sin that turn the queries, [B, 1, 1, R].
        key: cos and sin that turn the keys, [B or 1, 1, W, R]; None where the keys lie there already.
        excess: see `Placed`, [B, 1, 1].
    """

    columns: slice | Tensor
    seen: Tensor | None
    query: Turn
    key: Turn | None
    excess: Tensor | None

    @classmethod
    def of(cls, band: Placed, low: Tensor, high: Tensor, positions: Tensor) -> StepBand | None:
        """The band at some positions; None if no query sees a key of it.

        Arguments:
            band: of all positions from 0 on, as queries and as keys.
            low, high: of the queries, int64 [B] on the host.
            positions: of the queries, int64 [B] on the device.
        """
        counts = high - low
        width = int(counts.max())
        if width <= 0:
            return None
        device, offsets = positions.device, torch.arange(width)
        seen = None if bool((counts == width).all()) else (offsets < counts[:, None])[:, None, None].to(device)
        if bool((low == low[0]).all()):
            columns: slice | Tensor = slice(int(low[0]), int(low[0]) + width)
        else:
            last = (high - 1).clamp(min=0)[:, None]
            columns = torch.minimum(low[:, None] + offsets, last).to(device)
        key = None
        if band.key is not None:
            cos, sin = band.key
            key = _at(cos, columns), _at(sin, columns)
        cos, sin = band.query
        query = cos[0, 0, positions][:, None, None], sin[0, 0, positions][:, None, None]
        excess = None if band.excess is None else band.excess[0, 0, positions][:, None, None]
        return cls(columns, seen, query, key, excess)

    def of_keys(self, x: Tensor) -> Tensor:
        """Its columns of keys or values, [B, H_kv, m, D] -> [B, H_kv, W, D]."""
        if isinstance(self.columns, slice):
            return x[:, :, self.columns]
        rows, heads = (torch.arange(count, device=x.device) for count in x.shape[:2])
        return x[rows[:, None, None], heads[:, None], self.columns[:, None]]


def attend_step(q: Tensor, k: Tensor, v: Tensor, bands: Sequence[StepBand], scoring: Scoring) -> Tensor:
    """softmax(logits) v over all bands, as `engine.attend`.

    Arguments:
        q: [B, H, 1, D]; k, v: [B, H_kv, m, D], at least as many columns as the longest text has. What no query of
            the row sees must be finite.
        bands: of this step.
        scoring: layout, scale and mass.

    Returns:
        [B, H, 1, D].
    """
    parts = []
    for band in bands:
        keys = band.of_keys(k)
        if band.key is not None:
            keys = scoring.layout.turn(keys, *band.key)
        turned = scoring.layout.turn(q, *band.query)
        output, lse = with_lse(turned, keys, band.of_keys(v), band.seen, scoring.scale)
        bias = scoring.of(band.excess)
        parts.append((output, lse if bias is None else lse + bias))
    return merge(parts)


def _at(table: Tensor, columns: slice | Tensor) -> Tensor:
    """cos or sin of some columns, from [1, 1, m, R]."""
    return table[:, :, columns] if isinstance(columns, slice) else table[0, 0, columns][:, None]
