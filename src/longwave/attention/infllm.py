"""InfLLM: blocks of far keys, all at one distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longwave.attention.bands import Band, always, far, near, zero
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, Selection, near_pairs, top
from longwave.settings import setting


@dataclass(frozen=True, eq=False)
class Blocks:
    """What is remembered of the keys behind the first ones.

    Arguments:
        represented: one vector of each head for each block that left the window, [H, blocks, D].
        received: the attention that each later key got from near queries, summed up, [H, keys].
    """

    represented: Tensor
    received: Tensor


@dataclass(frozen=True)
class InfLLM(Selection):
    """The last w keys at their distance; the first keys and some blocks of far keys, all at distance w - 1.

    Once a block has left the window it is represented by r_h, for each head the mean of its keys that got most
    attention from this head while they were near. A chunk with mean query q̄, turned to place w - 1, sees the blocks
    with the largest

        Σ_h <q̄_h, r_h>.

    Keys between the last whole block and the window are seen, too.

    Source: arXiv 2402.04617.
    """

    sinks: int = setting(4, "How many of the first keys are always seen.", least=0, metavar="TOKENS")
    window: int | None = setting(
        None, "How many of the last keys keep their distance. Default: L/2.", least=1, metavar="TOKENS"
    )
    block: int | None = setting(None, "Keys of a block. Default: L/16.", least=1, metavar="TOKENS")
    top_blocks: int = setting(7, "How many blocks are chosen.", least=0, metavar="N")
    representatives: int = setting(4, "How many keys of a block represent it.", least=1, metavar="N")
    chunk: int | None = setting(
        None,
        "So many tokens of a prompt share one choice. Default: half the window, at most 512.",
        least=1,
        metavar="TOKENS",
    )

    name: ClassVar[str] = "infllm"
    summary: ClassVar[str] = "the last keys, and blocks of far keys at one distance"
    source: ClassVar[str] = "arXiv 2402.04617"
    changes: ClassVar[str] = "visible keys"
    cost: ClassVar[str] = "a vector for each block is read to choose, and about L keys to attend"
    croppable: ClassVar[bool] = False  # attention that was received cannot be taken back

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_chunk_within(self.w)

    @property
    def w(self) -> int:
        """The window in tokens."""
        return max(1, self.original_length // 2) if self.window is None else self.window

    @property
    def size(self) -> int:
        """Keys of a block."""
        return max(1, self.original_length // 16) if self.block is None else self.block

    @property
    def prefill_chunk(self) -> int:
        return max(1, min(self.w // 2, 512)) if self.chunk is None else self.chunk

    def bands(self, t: float) -> tuple[Band, ...]:
        """The list as if every far key were in it."""
        return near(self.w), far(self.w, query=always(self.w - 1), key=zero)

    def choose(self, row: Row, memory: Blocks | None) -> tuple[Choice, Blocks]:
        if memory is None:
            if row.start:
                raise ValueError(
                    f"{self.name} goes on only with a cache that it has filled. Pass the whole text with a new cache."
                )
            memory = Blocks(*(row.q.new_empty(row.q.shape[1], 0, *size) for size in ((row.q.shape[3],), ())))
        memory = self.represent(row, memory)
        device, blocks = row.q.device, memory.represented.shape[1]
        far_end = max(0, row.stop - self.w)  # of the keys that the last query of the chunk does not see as near ones
        rest = self.sinks + blocks * self.size
        listed = torch.cat(
            [
                torch.arange(min(self.sinks, far_end), device=device),
                self.select(row, memory).flatten(),
                torch.arange(rest, max(rest, far_end), device=device),
            ]
        )
        near_from = (row.positions - self.w + 1).clamp(min=0)
        query, key = torch.full_like(row.positions, self.w - 1), torch.zeros_like(listed)
        return Choice(near_from, listed[None, None], query, key, least=self.w), memory

    def select(self, row: Row, memory: Blocks) -> Tensor:
        """The keys of the chosen blocks: columns, [1, 1, keys]."""
        wide = torch.promote_types(row.q.dtype, torch.float32)
        mean = row.turn(row.q.to(wide), torch.full_like(row.positions, self.w - 1)).mean(2)[0]
        scores = torch.einsum("hd,hbd->b", mean, memory.represented.to(wide))
        first = self.sinks + top(scores, self.top_blocks) * self.size
        return (first[:, None] + torch.arange(self.size, device=first.device)).reshape(1, 1, -1)

    def represent(self, row: Row, memory: Blocks) -> Blocks:
        """Represent the blocks that have left the window since."""
        known = memory.represented.shape[1]
        new = max(0, (row.start - self.w - self.sinks) // self.size) - known
        if new <= 0:
            return memory
        first, count = self.sinks + known * self.size, new * self.size
        heads, group = row.q.shape[1], row.q.shape[1] // row.k.shape[1]
        best = top(memory.received[:, :count].reshape(heads, new, self.size), self.representatives)
        keys = row.k[0, :, first : first + count].reshape(-1, new, self.size, row.k.shape[-1])
        keys = keys.repeat_interleave(group, 0)
        chosen = keys.gather(2, best[..., None].expand(*best.shape, keys.shape[-1])).mean(2)
        return Blocks(torch.cat([memory.represented, chosen], 1), memory.received[:, count:])

    def remember(self, row: Row, choice: Choice, lse: Tensor, memory: Blocks) -> Blocks:
        """Add up the attention that near keys get."""
        assert choice.near is not None
        q, k, mask = near_pairs(row, choice.near)
        group = q.shape[1] // k.shape[1]
        got = torch.cat(
            [
                received(*heads, row.scale, mask)
                for heads in zip(q[0].split(group), k[0], lse[0].split(group), strict=True)
            ]
        )
        offset = self.sinks + memory.represented.shape[1] * self.size
        total = got.new_zeros(got.shape[0], max(0, row.stop - offset))
        total[:, : memory.received.shape[1]] = memory.received
        count = min(total.shape[1], got.shape[1])
        if count:
            total[:, -count:] += got[:, -count:]
        return Blocks(memory.represented, total)


def received(q: Tensor, k: Tensor, lse: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The attention that the keys of one head get from queries, [G, keys].

    Arguments:
        q: [G, n, D]; k: [keys, D], both at their places.
        lse: over everything that the queries see, [G, n].
        mask: which pairs count, [1, 1, n, keys]; None for all.
    """
    weights = (q.to(lse.dtype) @ k.to(lse.dtype).mT).mul_(scale).sub_(lse[..., None]).exp_()
    return (weights if mask is None else weights.masked_fill_(~mask[0], 0.0)).sum(1)
