"""Quest: for each head the pages of keys that may matter most to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longwave.attention.bands import Band, same, zero
from longwave.attention.engine import Scoring, attend
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, Selection, top
from longwave.settings import setting


@dataclass(frozen=True, eq=False)
class Pages:
    """The least and the largest key of each whole page, dimension by dimension, [H_kv, pages, D]."""

    least: Tensor
    most: Tensor


@dataclass(frozen=True)
class Quest(Selection):
    """In decoding each head sees the pages whose keys may score highest; a prompt is read with all keys.

    The score of a page with least keys m and largest keys M, dimension by dimension, bounds the logits in it:

        Σ_d max(q_d·m_d, q_d·M_d).

    Distances stay as they are. So beyond L it needs a scaling method below it.

    Source: arXiv 2406.10774.
    """

    page: int | None = setting(None, "Keys of a page. Default: L/16, at most 16.", least=1, metavar="TOKENS")
    budget: int | None = setting(
        None, "How many keys a head sees. Default: L/2, at most 1024.", least=1, metavar="TOKENS"
    )
    last_page: str = setting(
        "kept", "Whether the newest page is always seen, or scored as the others.", choices=("kept", "scored")
    )

    name: ClassVar[str] = "quest"
    summary: ClassVar[str] = "for each head the pages that may matter most; distances as they are"
    source: ClassVar[str] = "arXiv 2406.10774"
    changes: ClassVar[str] = "visible keys"
    cost: ClassVar[str] = "two vectors for each page are read to choose"
    trajectory: ClassVar[str] = "yarn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pages < 1:
            raise ValueError(
                f"the budget of {self.name} must hold a page of {self.size} tokens, got {self.budget}. Raise budget, "
                "or lower page."
            )

    @property
    def size(self) -> int:
        """Keys of a page."""
        return max(1, min(self.original_length // 16, 16)) if self.page is None else self.page

    @property
    def pages(self) -> int:
        """How many pages a head sees."""
        default = max(self.size, min(self.original_length // 2, 1024))
        return (default if self.budget is None else self.budget) // self.size

    @property
    def stored(self) -> int | None:
        return 0

    def bands(self, t: float) -> tuple[Band, ...]:
        return (Band(zero, lambda p: p + 1, same, same),)

    def cropped(self, memory: Pages | None, length: int) -> Pages | None:
        whole = slice(length // self.size)
        return None if memory is None else Pages(memory.least[:, whole], memory.most[:, whole])

    def attend(self, row: Row, memory: Pages | None) -> tuple[Tensor, Pages | None]:
        if row.decoding:
            return super().attend(row, memory)
        cos, sin = row.rotation(torch.zeros_like(row.positions))
        scale = row.spectrum.scaling**2
        placed = [row.placed((cos * scale, sin * scale), None)]
        return attend(row.q, row.k, row.v, placed, Scoring(row.layout, row.scale)), memory

    def choose(self, row: Row, memory: Pages | None) -> tuple[Choice, Pages]:
        memory = self.summary_of(row.k[0], memory)
        return Choice(None, self.select(row, memory), torch.zeros_like(row.positions)), memory

    def select(self, row: Row, memory: Pages) -> Tensor:
        """The keys of each head's pages: columns, [1, H, keys]."""
        wide = torch.promote_types(row.q.dtype, torch.float32)
        q = row.q[0].to(wide).reshape(row.k.shape[1], -1, row.q.shape[-1])
        above, below = q.clamp(min=0), q.clamp(max=0)
        scores = torch.baddbmm(above @ memory.most.to(wide).mT, below, memory.least.to(wide).mT)
        if tail := row.stop % self.size:
            keys = row.k[0, :, row.stop - tail :].to(wide)
            most, least = keys.amax(1, keepdim=True), keys.amin(1, keepdim=True)
            scores = torch.cat([scores, above @ most.mT + below @ least.mT], -1)
        scores = scores.flatten(0, 1)
        if self.last_page == "kept":
            scores[:, -1] = float("inf")
        chosen = top(scores, self.pages)
        columns = (chosen[..., None] * self.size + torch.arange(self.size, device=chosen.device)).flatten(1)
        return torch.where(columns < row.stop, columns, -1)[None]

    def summary_of(self, k: Tensor, memory: Pages | None) -> Pages:
        """The pages that are known, and those that are whole by now."""
        known = 0 if memory is None else memory.least.shape[1]
        whole = k.shape[1] // self.size
        if memory is not None and whole == known:
            return memory
        keys = k[:, known * self.size : whole * self.size].reshape(k.shape[0], whole - known, self.size, k.shape[2])
        least, most = keys.amin(2), keys.amax(2)
        if memory is not None:
            least, most = torch.cat([memory.least, least], 1), torch.cat([memory.most, most], 1)
        return Pages(least, most)
