"""Selections: attention methods that choose keys for their queries, by the queries."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longwave.attention.engine import merge
from longwave.attention.kernels import with_lse
from longwave.attention.rows import Row, RowWise

Part = tuple[Tensor, Tensor]  # output [1, H, n, D] and log-sum-exp [1, H, n]
Held = tuple[Tensor, Tensor]  # keys and values, [1, H_kv or H, S, D]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a chunk of queries sees: a near band, which ends at the query, and a list. They share no key.

    Arguments:
        near: the first key of each query's near band, ascending, int64 [n]; None for no near band. Its keys are
            scored at their true distance.
        listed: ascending columns of keys, int64 [1, 1 or H, S]; -1 for none. None for no list.
        query: places of the queries as the list sees them, [n].
        key: places of the listed keys, [S]; None if they lie at their places already.
        held: the listed keys at their places, and their values, where they are known.
        least: a query sees the listed keys that are so many tokens away and more.
    """

    near: Tensor | None
    listed: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    held: Held | None = None
    least: int = 0


@dataclass(frozen=True)
class Selection(RowWise):
    """An attention method that chooses keys: all queries of a chunk of the prompt see one list.

    A token that is decoded is a chunk of its own. Chunks are counted from the first token of a forward, and are part
    of the definition.
    """

    def require_chunk_within(self, window: int) -> None:
        """A `ValueError` if a chunk of the prompt is longer than the near band."""
        if self.prefill_chunk > window:
            raise ValueError(
                f"the chunk of {self.name} must be at most its window of {window} tokens, got {self.prefill_chunk}. "
                "Lower chunk, or raise window."
            )

    @abstractmethod
    def choose(self, row: Row, memory: Any) -> tuple[Choice, Any]:
        """What the queries of a chunk see, and what to remember."""

    def remember(self, row: Row, choice: Choice, lse: Tensor, memory: Any) -> Any:
        """What to remember of a chunk after its attention; `lse` [1, H, n] is that over everything it sees."""
        return memory

    def attend(self, row: Row, memory: Any) -> tuple[Tensor, Any]:
        found = []
        for first in range(row.start, row.stop, self.prefill_chunk):
            chunk = row.part(first, min(first + self.prefill_chunk, row.stop))
            choice, memory = self.choose(chunk, memory)
            parts = [part for part in (near_part(chunk, choice), list_part(chunk, choice)) if part is not None]
            memory = self.remember(chunk, choice, torch.stack([lse for _, lse in parts]).logsumexp(0), memory)
            found.append(merge(parts))
        return torch.cat(found, 2), memory


def near_part(row: Row, choice: Choice) -> Part | None:
    """Attention to the near band."""
    if choice.near is None:
        return None
    q, k, mask = near_pairs(row, choice.near)
    return with_lse(q, k, row.v[:, :, row.stop - k.shape[2] :], mask, row.scale)


def near_pairs(row: Row, near: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys of the near band at places that begin with 0, and which pairs count, [1, 1, n, keys]."""
    low = int(near[0])
    columns = torch.arange(low, row.stop, device=near.device)
    mask = None
    if row.q.shape[2] > 1:
        mask = ((columns >= near[:, None]) & (columns <= row.positions[:, None]))[None, None]
    return row.aim(row.q, row.positions - low), row.turn(row.k[:, :, low:], columns - low), mask


def list_part(row: Row, choice: Choice) -> Part | None:
    """Attention to the list."""
    if choice.listed is None or choice.query is None or choice.listed.shape[-1] == 0:
        return None
    columns = choice.listed
    keys, values = choice.held or listed_keys(row, columns, choice.key)
    seen = (columns >= 0)[:, :, None]
    if choice.least:
        seen = seen & (row.positions[:, None] - columns[:, :, None] >= choice.least)
    mask = None if bool(seen.all()) else seen
    return with_lse(row.aim(row.q, choice.query), keys, values, mask, row.scale)


def listed_keys(row: Row, columns: Tensor, places: Tensor | None) -> Held:
    """The keys of a list at their places, and their values."""
    keys = gather(row.k, columns)
    return keys if places is None else row.turn(keys, places), gather(row.v, columns)


def gather(x: Tensor, columns: Tensor) -> Tensor:
    """The columns of x [1, H_kv, m, D]: [1, H_kv, S, D] for one list, [1, H, S, D] for one of each head."""
    index = columns[0].clamp(min=0)
    if index.shape[0] == 1:
        return x.index_select(2, index[0])
    head = torch.arange(index.shape[0], device=x.device) // (index.shape[0] // x.shape[1])
    return x[0, head[:, None], index][None]


def top(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values, ascending, [..., count]. Of equal values the first ones count."""
    if count >= values.shape[-1]:
        return torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    values = values.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    least = values.topk(count).values[..., -1:] if count else values.new_full((*values.shape[:-1], 1), float("inf"))
    above, equal = values > least, values == least
    taken = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return taken.nonzero()[:, -1].reshape(*values.shape[:-1], count)
