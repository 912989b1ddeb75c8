"""A cache layer of bounded size: it keeps the first columns and the last ones, whatever lies between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 256  # columns dropped at a time


class BoundedLayer(DynamicLayer):
    """Holds `head` first and `tail` last columns, and up to `SPARE` more.

    It counts all tokens that it has seen: positions, masks and `generate` go on as with any cache. `columns` says
    which ones it returned last.

    Arguments:
        head: first columns to keep, padding in front of the text included.
        tail: last columns to keep before the next token comes.
    """

    def __init__(self, head: int, tail: int) -> None:
        super().__init__()
        self.head, self.tail = head, tail
        self.total = 0
        self.columns = torch.empty(0, dtype=torch.int64)

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether no column is lost that a shorter text would need."""
        return len(self.columns) == self.total

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add columns, and return those that their queries may need."""
        self._drop()
        new = key_states.shape[-2]
        added = torch.arange(self.total, self.total + new, device=key_states.device)
        self.columns = torch.cat([self.columns.to(added.device), added])
        self.total += new
        keys, values = super().update(key_states, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        return self.total

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.total + query_length, 0

    def reset(self) -> None:
        super().reset()
        self.total, self.columns = 0, self.columns[:0]

    def crop(self, tokens_to_remove: int) -> None:
        if not self.is_croppable:
            raise ValueError("a bounded cache that has dropped columns cannot be cut back. Start a new one.")
        super().crop(tokens_to_remove)
        self.total -= abs(tokens_to_remove)
        self.columns = self.columns[: self.total]

    def _drop(self) -> None:
        if len(self.columns) <= self.head + self.tail + SPARE or self.keys is None or self.values is None:
            return
        self.keys = torch.cat([self.keys[..., : self.head, :], self.keys[..., -self.tail :, :]], dim=-2)
        self.values = torch.cat([self.values[..., : self.head, :], self.values[..., -self.tail :, :]], dim=-2)
        self.columns = torch.cat([self.columns[: self.head], self.columns[-self.tail :]])


def bound(cache: DynamicCache, layers: set[int], head: int, tail: int) -> None:
    """Give an empty cache bounded layers in the places of those numbers."""
    for index in layers:
        if index < len(cache.layers) and type(cache.layers[index]) is DynamicLayer:
            cache.layers[index] = BoundedLayer(head, tail)


def unbound(cache: DynamicCache) -> None:
    """Give an empty cache ordinary layers again."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, BoundedLayer) and not layer.total:
            cache.layers[index] = DynamicLayer()
