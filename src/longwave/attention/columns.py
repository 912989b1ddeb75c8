"""The mask that attention by bands needs: which position the key in each column has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

NO_KEY = -1
CUSTOM = "_longwave_custom"  # whether the model's own mask shows or hides keys in another way than by their order
STOCK = "_longwave_stock"  # on a tensor of positions: makes the mask that the model's own attention takes


class Columns:
    """A mask function of transformers that returns positions [batch, 1, 1, m] int64; -1 where there is no key.

    Four axes, because transformers takes a mask of two for a padding mask where it gets it back.

    Arguments:
        stock: the mask function of the model's own attention. Its mask is made where a layer needs it.
        causal: the rule of transformers that a token sees those before it.
    """

    def __init__(self, stock: Callable[..., Any], causal: Callable[..., Any]) -> None:
        self.stock, self.causal = stock, causal

    def __call__(self, **given: Any) -> Any:
        if given.get("local_size") is not None:  # layers that see a window: they have no bands
            return self.stock(**given)
        columns = key_positions(given)
        setattr(columns, CUSTOM, given.get("mask_function", self.causal) is not self.causal)
        setattr(columns, STOCK, _Once(partial(self.stock, **given)))
        return columns


class _Once:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make: Callable[[], Any] | None = make
        self.made: Any = None

    def __call__(self) -> Any:
        if self.make is not None:
            self.made, self.make = self.make(), None
        return self.made


def key_positions(given: dict[str, Any]) -> Tensor:
    """The positions of the columns, from what transformers tells a mask function."""
    start, count, end = given.get("kv_offset", 0), given["kv_length"], given.get("q_offset", 0) + given["q_length"]
    column = torch.arange(count, device=given.get("device")) + start
    padding = given.get("attention_mask")
    if padding is None:
        found = torch.where(column < end, column, NO_KEY)[None]
    else:
        counted = torch.where(padding, padding.long().cumsum(-1) - 1, NO_KEY)
        missing = max(0, start + count - counted.shape[1])  # slots of a static cache that are not filled yet
        counted = torch.nn.functional.pad(counted, (0, missing), value=NO_KEY)
        found = torch.where(column < end, counted[:, start : start + count], NO_KEY)
    return found.expand(given["batch_size"], -1)[:, None, None].contiguous()


def is_columns(mask: Any) -> bool:
    """Whether a mask is one of these: no other has whole numbers."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int64


def is_custom(mask: Tensor) -> bool:
    """Whether the model's own mask shows or hides keys in another way than by their order."""
    return bool(getattr(mask, CUSTOM, False))


def plain_mask(mask: Any) -> Any:
    """The mask for the model's own attention."""
    if not is_columns(mask):
        return mask
    stock = getattr(mask, STOCK, None)
    if stock is None:
        raise ValueError(
            "the attention mask was copied on its way to the layer, which loses what an attention method needs. "
            "Put the whole model on one device."
        )
    return stock()
