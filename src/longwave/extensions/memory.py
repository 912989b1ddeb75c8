"""Cache layers that remember, for each row, what a selection has chosen: the memory follows the keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

from longwave.attention.rows import RowWise


@dataclass(frozen=True)
class Remembered:
    """What is remembered of a row of so many tokens."""

    length: int
    memory: Any


class Room:
    """A tensor that grows by tokens, and is not copied each time."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)

    def add(self, held: Tensor | None, new: Tensor) -> Tensor:
        """`held` [B, H, n, D], which may be empty, and the tokens of `new` behind it."""
        held = torch.empty(0) if held is None else held
        count = held.shape[2] if held.numel() else 0
        total, buffer = count + new.shape[2], self.buffer
        here = count and held.data_ptr() == buffer.data_ptr() and held.shape[:2] == buffer.shape[:2]
        sealed = buffer.is_inference() and not torch.is_inference_mode_enabled()  # not to be written into any more
        if not here or sealed or total > buffer.shape[2]:
            buffer = self.buffer = new.new_empty(*new.shape[:2], total + total // 4 + 64, new.shape[3])
            if count:
                buffer[:, :, :count] = held
        buffer[:, :, count:total] = new
        return buffer[:, :, :total]


class Memories:
    """The memory of each row, beside the keys of a cache layer. It is moved where they are, and dropped with them."""

    method: RowWise
    rows: tuple[Remembered | None, ...] = ()

    def of(self, row: int) -> Remembered | None:
        return self.rows[row] if row < len(self.rows) else None

    def keep(self, row: int, remembered: Remembered) -> None:
        rows = [*self.rows, *[None] * (row + 1 - len(self.rows))]
        rows[row] = remembered
        self.rows = tuple(rows)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.rows = ()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take(beam_idx.tolist())

    def _take(self, order: Iterable[int]) -> None:
        if self.rows:
            self.rows = tuple(self.of(row) for row in order)


class SelectingLayer(Memories, DynamicLayer):
    """A dynamic layer with memories. Where it grows by a token it does not copy the others."""

    def __init__(self, method: RowWise) -> None:
        super().__init__()
        self.method = method
        self.make_room()

    def __copy__(self) -> SelectingLayer:
        copied = SelectingLayer(self.method)
        vars(copied).update(vars(self))
        copied.make_room()  # of its own: two layers must not write into one tensor
        return copied

    def make_room(self) -> None:
        self.room_of_keys, self.room_of_values = Room(), Room()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self.room_of_keys.add(self.keys, key_states)
        self.values = self.room_of_values.add(self.values, value_states)
        return self.keys, self.values

    def offload(self) -> None:
        super().offload()
        self.make_room()

    def reset(self) -> None:
        super().reset()
        self.make_room()

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.method.croppable

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove < 0 and self.is_initialized:
            if not self.is_croppable:
                raise ValueError(
                    f"{self.method.name} cannot take tokens off a cache. Pass the whole text with a new cache."
                )
            self.rows = tuple(self._cropped(row, -tokens_to_remove) for row in self.rows)
        super().crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._take(row for row in range(len(self.rows)) for _ in range(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._take(torch.arange(len(self.rows))[indices.cpu()].tolist())

    def _cropped(self, row: Remembered | None, count: int) -> Remembered | None:
        if row is None or row.length <= count:
            return None
        return replace(row, length=row.length - count, memory=self.method.cropped(row.memory, row.length - count))


class StaticSelectingLayer(Memories, StaticLayer):
    """A static layer with memories. Its steps differ from one another, so that they are not compiled."""

    is_compileable = False

    def __init__(self, method: RowWise, max_cache_len: int) -> None:
        super().__init__(max_cache_len)
        self.method = method


KINDS: dict[type, Callable[[RowWise, Any], Any]] = {
    DynamicLayer: lambda method, layer: SelectingLayer(method),
    StaticLayer: lambda method, layer: StaticSelectingLayer(method, layer.max_cache_len),
}


def remembering(cache: Cache, index: int, method: RowWise) -> Memories:
    """The layer of a cache that remembers; a stock layer that stands there is replaced, and its keys are kept.

    Raises:
        ValueError: for a cache that keeps its keys in another form, quantized for example.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, Memories):
        return layer
    kind = KINDS.get(type(layer))
    if kind is None:
        raise ValueError(
            f"{method.name} needs a dynamic or a static cache, got layers of type {type(layer).__name__}. "
            'Leave cache_implementation out, or pass "static".'
        )
    own = kind(method, layer)
    vars(own).update(vars(layer))
    cache.layers[index] = own
    found: Memories = own
    return found
