"""Rows whose tokens several processes share: each has some neighbouring tokens of a row, and all layers in full.

Attention alone needs whole rows. There the processes exchange: a process gives its tokens of most heads away, and gets
all tokens of the other heads. While a forward and its backward run, the shards are in force for one model, and what
needs whole rows asks here: masks, log-n, learned scalars of heads, and the places of an attention method.

Source: DeepSpeed-Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Core = Callable[..., tuple[Tensor, Any]]  # (module, query, key, value, mask, ...) -> output [B, n, H, D], weights


@dataclass(frozen=True, eq=False)
class Shards:
    """One process's shard of the rows of a batch, and of their heads.

    Arguments:
        positions: position ids of the whole rows, int64 [batch, n].
        rank: of this process among those that share the rows.
        count: of these processes. n and the query heads are multiples of it.
        exchange: calls an attention function on whole rows of some heads, as (function, module, query, key, value,
            mask, ...) with the tensors of a shard; returns the shard of its output.
        config: of the text model that they are in force for.
    """

    positions: Tensor
    rank: int
    count: int
    exchange: Callable[..., tuple[Tensor, Any]]
    config: Any = None

    def own(self, whole: Tensor) -> Tensor:
        """The shard's tokens of a tensor [batch, n, ...]."""
        return whole.chunk(self.count, dim=1)[self.rank].contiguous()

    def heads(self, whole: Tensor) -> Tensor:
        """The entries of a tensor [H] for the query heads that this process has whole rows of."""
        return whole.chunk(self.count)[self.rank]

    def attend(
        self,
        core: Core,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Attention of a layer. `core` gets what it would get without shards, but for some heads alone."""
        told, mask = kwargs.pop("position_ids", None) is not None, kwargs.pop("attention_mask", mask)

        def whole(module: nn.Module, *given: Any, **kwargs: Any) -> tuple[Tensor, Any]:
            kwargs.pop("position_ids")  # as the exchange has put them together; all layers are to get one tensor
            return core(module, *given, **kwargs, **({"position_ids": self.positions} if told else {}))

        own = self.own(self.positions)
        return self.exchange(whole, module, query, key, value, mask, *args, **kwargs, position_ids=own)


class Whole:
    """A mask function of transformers that makes the mask of whole rows, where shards are in force.

    Arguments:
        mask: the mask function that it asks.
    """

    def __init__(self, mask: Callable[..., Any]) -> None:
        self.mask = mask

    def __call__(self, **given: Any) -> Any:
        shards = shards_of(given.get("config"))
        if shards is None:
            return self.mask(**given)
        padding = given.get("attention_mask")
        return self.mask(
            **{
                **given,
                "q_length": given["q_length"] * shards.count,
                "kv_length": given["kv_length"] * shards.count,
                "attention_mask": None if padding is None else padding.repeat(1, shards.count),  # training pads nothing
            }
        )


class _InForce:
    """The shards of the forward that runs. Backward runs layers again in other threads, so they are one for all."""

    shards: Shards | None = None


def shards_of(config: Any) -> Shards | None:
    """The shards that are in force for the model with this text config."""
    shards = _InForce.shards
    return shards if shards is not None and shards.config is config else None


@contextmanager
def in_force(shards: Shards | None) -> Iterator[None]:
    """Within the block these shards are in force: for the forward, and for the backward of the same step."""
    before, _InForce.shards = _InForce.shards, shards
    try:
        yield
    finally:
        _InForce.shards = before
