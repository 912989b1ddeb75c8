"""TokenSelect: the keys that the heads of a layer vote for, at places without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longwave.attention.bands import Band, far, near, zero
from longwave.attention.dot import dot
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, Held, Selection, gather, top
from longwave.settings import setting

BUDGET = 2688  # keys that the paper's settings see: 128 first ones, 512 last ones, 2048 by vote


@dataclass(frozen=True, eq=False)
class Anchor:
    """The last choice of decoding.

    Arguments:
        query: for which it was made.
        listed: its list.
        every: the keys of its list and of its near band at their places, and their values.
        start, stop: where its near band began and ended.
    """

    query: Tensor
    listed: Tensor
    every: Held
    start: int
    stop: int


@dataclass(frozen=True)
class TokenSelect(Selection):
    """The first keys, the last ones, and the k keys between them that the heads of a layer vote for.

    A chunk votes by its mean query q̄, turned to distance w. Keys are not turned. So every key is scored at the same
    distance, by its content alone:

        s_hj = <q̄_h, k_j>,    v_j = Σ_h softmax_j(s_h)_j,    the k largest v are taken.

    All keys that are seen get places without gaps, in their order, so that no distance reaches a + k + w.

    In decoding a list is kept while the query is like the one that chose it, by the cosine of all heads together. The
    near band then grows instead of moving on: a token that left it would be in no list.

    Source: arXiv 2411.02886. There the near band moves on, and tokens are lost.
    """

    sinks: int | None = setting(
        None, "How many of the first keys are always seen. Default: L/64, 4 to 128.", least=0, metavar="TOKENS"
    )
    window: int | None = setting(
        None, "How many of the last keys are seen. Default: L/2, at most 512.", least=1, metavar="TOKENS"
    )
    top_k: int | None = setting(
        None,
        "How many keys are chosen; 0 for none. Default: the rest of L, or of 2688 if that is less.",
        least=0,
        metavar="TOKENS",
    )
    chunk: int | None = setting(
        None, "So many tokens of a prompt share one choice. Default: half the window.", least=1, metavar="TOKENS"
    )
    threshold: float = setting(
        0.9,
        "In decoding a choice serves queries whose cosine with its own is so large; -1 for all, over 1 for none.",
        least=-1,
    )
    vote: str = setting(
        "soft",
        "What the heads add up: their softmax, their own choices, or their logits.",
        choices=("soft", "head", "logit"),
    )
    on_hit: str = setting(
        "freeze",
        "What the near band does while a choice serves; slide loses the tokens that leave it.",
        choices=("freeze", "slide"),
    )

    name: ClassVar[str] = "token-select"
    summary: ClassVar[str] = "the first keys, the last ones, and those that the heads vote for"
    source: ClassVar[str] = "arXiv 2411.02886"
    changes: ClassVar[str] = "visible keys"
    cost: ClassVar[str] = "keys are read once to vote, and 2688 at most to attend"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_chunk_within(self.w)

    @property
    def a(self) -> int:
        """The first keys."""
        length = self.original_length
        return min(128, max(4, length // 64), length // 2) if self.sinks is None else self.sinks

    @property
    def w(self) -> int:
        """The window in tokens."""
        return max(1, min(self.original_length // 2, 512)) if self.window is None else self.window

    @property
    def k(self) -> int:
        """How many keys are chosen."""
        room = self.w // 4  # for the near band to grow while a choice serves
        rest = max(0, min(self.original_length - room, BUDGET) - self.a - self.w)
        return rest if self.top_k is None else self.top_k

    @property
    def budget(self) -> int:
        """How many keys a query sees."""
        return self.a + self.k + self.w

    @property
    def prefill_chunk(self) -> int:
        return max(1, self.w // 2) if self.chunk is None else self.chunk

    def bands(self, t: float) -> tuple[Band, ...]:
        """The list as if it had the first keys alone, which are the farthest."""
        return near(self.w), far(self.w, query=lambda p: p.clamp(max=self.budget - 1), key=zero)

    def span(self, t: float) -> float:
        return min(t * self.original_length, max(self.budget, self.original_length))

    def choose(self, row: Row, memory: Anchor | None) -> tuple[Choice, Anchor | None]:
        if not row.decoding:
            memory = None
        if row.stop <= self.budget:
            return Choice(torch.zeros_like(row.positions)), memory
        place = torch.arange(self.a + self.k, device=row.q.device)
        every: Held | None
        held: Held | None
        if memory is not None and self.serves(memory, row):
            listed, every, held = memory.listed, None, None
            if self.on_hit == "slide":
                keys, values = memory.every
                start, held = row.stop - self.w, (keys[:, :, : len(place)], values[:, :, : len(place)])
            else:
                start, every = memory.start, self.grown(memory, row)
        else:
            start, held = row.stop - self.w, None
            listed = torch.cat([place[None, None, : self.a], self.select(row)], -1)
            seen = every = self.seen(row, listed, start)
            memory = Anchor(row.q.flatten(), listed, seen, start, row.stop) if row.decoding else None
        near = torch.full_like(row.positions, start)
        return Choice(near, listed, row.positions - start + len(place), place, held, every=every), memory

    def seen(self, row: Row, listed: Tensor, start: int) -> Held:
        """The keys of the list and of the near band, at places without gaps, and their values."""
        keys, values = (torch.cat([gather(x, listed), x[:, :, start:]], 2) for x in (row.k, row.v))
        return row.turn_between(keys, 0), values

    def grown(self, anchor: Anchor, row: Row) -> Held:
        """The keys of a choice and those that came since, and their values."""
        if row.stop == anchor.stop:
            return anchor.every
        keys, values = anchor.every
        new = row.turn_between(row.k[:, :, anchor.stop :], keys.shape[2])
        return torch.cat([keys, new], 2), torch.cat([values, row.v[:, :, anchor.stop :]], 2)

    def serves(self, anchor: Anchor, row: Row) -> bool:
        """Whether the choice of the anchor serves a query, and the near band has room to grow to it."""
        reach = self.a + self.k + row.stop - anchor.start
        if self.on_hit == "freeze" and reach > max(self.budget, self.original_length):
            return False
        wide = torch.promote_types(row.q.dtype, torch.float32)
        alike = torch.cosine_similarity(row.q.flatten().to(wide), anchor.query.to(wide), dim=0)
        return bool(alike >= self.threshold)

    def select(self, row: Row) -> Tensor:
        """The k keys that the heads vote for, between the first and the last ones: columns, [1, 1, k]."""
        wide = torch.promote_types(row.q.dtype, torch.float32)
        mean = row.turn_between(row.q.to(wide), self.w).mean(2)[0]
        scores = dot(mean, row.k[0], self.a, row.stop - self.w)
        return self.a + top(self.votes(scores), self.k)[None, None]

    def votes(self, scores: Tensor) -> Tensor:
        """From the scores of the heads [H, T] to the votes for each key [T]."""
        if self.vote == "soft":
            return scores.softmax(-1).sum(0)
        if self.vote == "logit":
            return scores.sum(0)
        chosen: Any = top(scores, self.k)
        return torch.zeros_like(scores).scatter_(1, chosen, 1.0).sum(0)
