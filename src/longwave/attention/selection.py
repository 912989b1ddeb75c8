"""Selections: attention methods that choose keys for their queries, by the queries."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longwave.attention.edges import before
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
        every: the keys of list and near band together at the places of the list, and their values; where they are
            known, the others are not read. The last query sees all of them, the one before it all but one, and so on.
    """

    near: Tensor | None
    listed: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    held: Held | None = None
    least: int = 0
    every: Held | None = None


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

    def see(self, row: Row, choice: Choice, memory: Any) -> tuple[Tensor, Any]:
        """Attention of a chunk to what it sees, [1, H, n, D], and what to remember."""
        if choice.every is not None:
            return merge(every_part(row, choice)), memory
        return merge([part for part in (near_part(row, choice), list_part(row, choice)) if part is not None]), memory

    def attend(self, row: Row, memory: Any) -> tuple[Tensor, Any]:
        found = []
        for first in range(row.start, row.stop, self.prefill_chunk):
            stop = min(first + self.prefill_chunk, row.stop)
            chunk = row if (first, stop) == (row.start, row.stop) else row.part(first, stop)
            choice, memory = self.choose(chunk, memory)
            output, memory = self.see(chunk, choice, memory)
            found.append(output)
        return found[0] if len(found) == 1 else torch.cat(found, 2), memory


def every_part(row: Row, choice: Choice) -> list[Part]:
    """Attention to list and near band at once: the keys that all queries see, and the n last ones."""
    assert choice.every is not None and choice.query is not None
    keys, values = choice.every
    q, count, whole = row.aim(row.q, choice.query), row.q.shape[2], keys.shape[2] - row.q.shape[2]
    if count == 1:
        return [with_lse(q, keys, values, None, row.scale)]
    parts = [before(q, keys[:, :, whole:], values[:, :, whole:], row.scale)]
    if whole:
        parts.append(with_lse(q, keys[:, :, :whole], values[:, :, :whole], None, row.scale))
    return parts


def near_part(row: Row, choice: Choice) -> Part | None:
    """Attention to the near band."""
    if choice.near is None:
        return None
    q, k, mask = near_pairs(row, choice.near)
    return with_lse(q, k, row.v[:, :, row.stop - k.shape[2] :], mask, row.scale)


def near_pairs(row: Row, near: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys of the near band at places that begin with 0, and which pairs count, [1, 1, n, keys]."""
    low = int(near[0])
    mask = None
    if row.q.shape[2] > 1:
        columns = torch.arange(low, row.stop, device=near.device)
        mask = ((columns >= near[:, None]) & (columns <= row.positions[:, None]))[None, None]
    q = row.aim_between(row.q, row.start - low)
    return q, row.turn_between(row.k[:, :, low:], 0), mask


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
    if x.device.type == "cpu":  # rows are copied as they lie
        lists = index.unflatten(0, (x.shape[1], -1))
        taken = [x[0, head].index_select(0, lists[head].flatten()) for head in range(x.shape[1])]
        return torch.cat(taken).reshape(1, *index.shape, x.shape[3])
    head = torch.arange(index.shape[0], device=x.device) // (index.shape[0] // x.shape[1])
    return x[0, head[:, None], index][None]


def top(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values, ascending, [..., count]. Of equal values the first ones count."""
    if count >= values.shape[-1]:
        return torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    values = values.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    if not count:
        return torch.empty(*values.shape[:-1], 0, dtype=torch.int64, device=values.device)
    best = values.topk(count)
    least = best.values[..., -1:]
    if int((values >= least).sum()) == best.indices.numel():  # no value outside equals the least one
        return best.indices.sort(-1).values
    above, equal = values > least, values == least
    taken = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return taken.nonzero()[:, -1].reshape(*values.shape[:-1], count)
