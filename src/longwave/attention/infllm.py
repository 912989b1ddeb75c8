"""InfLLM: blocks of far keys, all at one distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from longwave.attention.bands import Band, always, far, near, zero
from longwave.attention.edges import before
from longwave.attention.engine import merge
from longwave.attention.kernels import with_lse
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, Part, Selection, gather, listed_keys, top
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
        mean = row.layout.turn(row.q.to(wide), *row.between(self.w - 1, self.w)).mean(2)[0]
        scores = (memory.represented.to(wide) @ mean[..., None]).sum(0).flatten()
        first = self.sinks + top(scores, self.top_blocks) * self.size
        return (first[:, None] + torch.arange(self.size, device=first.device)).reshape(1, 1, -1)

    def represent(self, row: Row, memory: Blocks) -> Blocks:
        """Represent the blocks that have left the window since."""
        known = memory.represented.shape[1]
        new = max(0, (row.start - self.w - self.sinks) // self.size) - known
        if new <= 0:
            return memory
        first, count = self.sinks + known * self.size, new * self.size
        best = top(memory.received[:, :count].reshape(-1, new, self.size), self.representatives)
        columns = first + self.size * torch.arange(new, device=best.device)[:, None] + best
        chosen = gather(row.k, columns.flatten(1)[None])[0].unflatten(1, (new, -1)).mean(2)
        return Blocks(torch.cat([memory.represented, chosen], 1), memory.received[:, count:])

    def see(self, row: Row, choice: Choice, memory: Blocks) -> tuple[Tensor, Blocks]:
        assert choice.near is not None
        near = Near.of(row, int(choice.near[0]), self.w)
        parts = [near.part, *self.far_parts(row, choice)]
        lse = parts[0][1] if len(parts) == 1 else torch.stack([lse for _, lse in parts]).logsumexp(0)
        return merge(parts), self.remember(row, near.received(lse), memory)

    def far_parts(self, row: Row, choice: Choice) -> list[Part]:
        """Attention to the list: to the keys that all queries see, and to its last ones, which leave the window."""
        assert choice.listed is not None
        late = min(max(0, row.stop - self.w), row.q.shape[2] - 1)  # the first query does not see so many
        q = row.layout.turn(row.q, *row.scaled(self.w - 1, self.w))
        keys, values = listed_keys(row, choice.listed, None)
        whole = keys.shape[2] - late
        parts = [with_lse(q, keys[:, :, :whole], values[:, :, :whole], None, row.scale)] if whole else []
        if late:
            output, lse = before(q[:, :, -late:], keys[:, :, whole:], values[:, :, whole:], row.scale)
            first = row.q.shape[2] - late
            parts.append((pad(output, (0, 0, first, 0)), pad(lse, (first, 0), value=float("-inf"))))
        return parts

    def remember(self, row: Row, got: Tensor, memory: Blocks) -> Blocks:
        """Add up the attention that near keys get, [H, keys]."""
        offset = self.sinks + memory.represented.shape[1] * self.size
        total = got.new_zeros(got.shape[0], max(0, row.stop - offset))
        total[:, : memory.received.shape[1]] = memory.received
        count = min(total.shape[1], got.shape[1])
        if count:
            total[:, -count:] += got[:, -count:]
        return Blocks(memory.represented, total)


@dataclass(frozen=True, eq=False)
class Near:
    """Attention of a chunk to its near band, head by head, with its weights.

    Arguments:
        part: output [1, H, n, D] and log-sum-exp [1, H, n] over the near band.
        weights: [H, n, keys]; the sum of each row is 1.
    """

    part: Part
    weights: Tensor

    @classmethod
    def of(cls, row: Row, low: int, window: int) -> Near:
        """The keys from column `low` on, of which a query sees the last `window` up to its own."""
        keys, heads, count = row.turn_between(row.k[:, :, low:], 0), row.q.shape[1], row.q.shape[2]
        wide = torch.promote_types(row.q.dtype, torch.float32)
        grouped = row.aim_between(row.q, row.start - low)[0].to(wide).reshape(row.k.shape[1], -1, row.q.shape[3])
        logits = (grouped @ keys[0].to(wide).mT).view(heads, count, -1).mul_(row.scale)
        if count > 1:
            hide(logits, window)
        most = logits.amax(-1, keepdim=True)
        weights = logits.sub_(most).exp_()
        total = weights.sum(-1, keepdim=True)
        weights.div_(total)
        values = row.v[0, :, low:]
        output = weights.to(values.dtype).view(*grouped.shape[:2], -1) @ values
        return cls((output.view(1, heads, count, -1), (most + total.log())[None, ..., 0]), weights)

    def received(self, lse: Tensor) -> Tensor:
        """The attention that each key gets, [H, keys]; `lse` [1, H, n] is over everything that the queries see."""
        share = (self.part[1] - lse).exp()[0, :, None].to(self.weights.dtype)
        return (share @ self.weights)[:, 0]


def hide(logits: Tensor, window: int) -> None:
    """Of the last keys up to its own a query sees `window`. The others are hidden, in place: [H, n, keys]."""
    count, keys = logits.shape[1:]
    ones = torch.ones(count, count, dtype=torch.bool, device=logits.device)
    logits[..., keys - count :].masked_fill_(ones.triu(1), float("-inf"))
    left = keys - window  # of these the last query sees none
    if left > 0:
        logits[..., :left].masked_fill_(ones[:, :left].tril(-1 - (count - 1 - left)), float("-inf"))
