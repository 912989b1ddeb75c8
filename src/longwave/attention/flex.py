"""One call of PyTorch's flex_attention for a whole band: its kernel skips the blocks of keys that no query sees."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from longwave.attention import gpu_kernels
from longwave.attention.placement import Placed

BLOCK = 128  # queries, and keys, of a block
LEAST = 128  # queries: fewer are one tile
NARROWEST, WIDEST = 16, 256  # dimensions of a head
SHAPES = 64  # how often the kernel may be compiled anew: for each type, head size and kind of length
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Logits of a forward with gradients: with fewer, one dense softmax is at hand sooner than a compiled kernel.
DENSE = 2**28


def takes(query: Tensor, key: Tensor, value: Tensor, *, grad: bool) -> bool:
    """Whether such tensors run here: with or without gradients, also through the log-sum-exp."""
    return (
        ("flex-grad" if grad else "flex") in gpu_kernels.ON
        and query.device.type == "cuda"
        and query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.shape[2] >= LEAST
        and (not grad or query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] >= DENSE)
        and all(NARROWEST <= x.shape[-1] <= WIDEST for x in (query, value))
        and _available()
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale) v, and the log-sum-exp of the logits, -inf for a query that sees no key.

    Arguments:
        query: [B, H, n, D]; key, value: [B, H_kv, m, D]; head h reads the keys of head ⌊h/(H/H_kv)⌋.
        mask: from `block_mask`.
        scale: of the logits.
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    given: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if query.device.type != "cuda":  # for the tests: all logits in memory
        output, found = flex_attention(query, key, value, return_aux=AuxRequest(lse=True), **given)
        return output, found.lse
    # The kernel for few queries takes groups of 1, 2, 4, ... heads only, so it is not left to PyTorch to choose.
    given["kernel_options"] = {"BACKEND": "TRITON"}
    with torch._dynamo.config.patch(recompile_limit=SHAPES):
        output, found = _compiled()(query, key, value, return_aux=AuxRequest(lse=True), **given)
    return output, found.lse


def block_mask(band: Placed, columns: slice, batch: int) -> Any:
    """Which of the columns each query of a band sees, as flex_attention takes it. The first layer that asks makes it.

    Arguments:
        columns: the keys of the call; column 0 of the mask is the first of them.
        batch: how many rows the call has.
    """
    key = columns.start, columns.stop, batch
    if key not in band.masks:
        band.masks[key] = _block_mask(band, columns, batch)
    return band.masks[key]


class Blocks(NamedTuple):
    """The blocks of columns that each block of queries sees, in the form of flex_attention.

    Arguments:
        some: how many blocks have pairs to be masked, int32 [B, 1, blocks of queries].
        some_at: which blocks these are, the first `some` of [B, 1, blocks of queries, blocks of columns].
        whole, whole_at: the same for blocks that every query sees wholly.
    """

    some: Tensor
    some_at: Tensor
    whole: Tensor
    whole_at: Tensor


def blocks(low: Tensor, high: Tensor, count: int, *, holes: bool = False) -> Blocks:
    """The blocks of queries that see low <= column < high, without a tensor of queries x columns.

    Arguments:
        low, high: int64 [B, n], 0 <= low, high <= count.
        count: columns.
        holes: some columns in between are hidden, so that no block is seen wholly.
    """
    # Rows behind the last query see nothing; a block with such rows is not seen wholly, as in PyTorch's own masks.
    low, high = (pad(edge, (0, -edge.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK)) for edge in (low, high))
    empty = high <= low
    start = low.masked_fill(empty, count).amin(-1) // BLOCK
    stop = -(-high.masked_fill(empty, 0).amax(-1) // BLOCK)
    start = torch.minimum(start, stop)  # no query of the block sees a key
    first, last = -(-low.amax(-1) // BLOCK), high.amin(-1) // BLOCK
    none = (last <= first) | holes
    first, last = torch.where(none, stop, first), torch.where(none, stop, last)
    column = torch.arange(max(1, -(-count // BLOCK)), device=low.device)
    before = (first - start)[..., None]
    some_at = torch.where(column < before, start[..., None] + column, last[..., None] + column - before)
    whole_at = first[..., None] + column
    some_at, whole_at = (at.clamp(max=len(column) - 1) for at in (some_at, whole_at))  # what is behind them is not read
    found = first - start + stop - last, some_at, last - first, whole_at
    return Blocks(*(part.to(torch.int32)[:, None].contiguous() for part in found))


def _block_mask(band: Placed, columns: slice, batch: int) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    count, tokens = columns.stop - columns.start, band.low.shape[1]
    low, high = (
        (edge - columns.start).clamp(0, count).expand(batch, tokens).contiguous() for edge in (band.low, band.high)
    )
    hidden = None if band.hidden is None else band.hidden[:, columns].expand(batch, count)
    found = blocks(low, high, count, holes=hidden is not None)
    return BlockMask.from_kv_blocks(*found, BLOCK, _sees(low, high, hidden), (tokens, count))


def _sees(low: Tensor, high: Tensor, hidden: Tensor | None) -> Callable[..., Tensor]:
    """Whether the query sees the column, for single indices. Whole blocks may be asked for: nothing is behind them."""
    low, high = (pad(edge, (0, -edge.shape[1] % BLOCK)).to(torch.int32) for edge in (low, high))

    def within(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        return (low[row, query] <= column) & (column < high[row, query])

    if hidden is None:
        return within
    there = pad(~hidden, (0, -hidden.shape[1] % BLOCK), value=False)

    def seen(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        return (low[row, query] <= column) & (column < high[row, query]) & there[row, column]

    return seen


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


@lru_cache(maxsize=1)
def _available() -> bool:
    """Whether this PyTorch has flex_attention with its log-sum-exp, and Triton to compile it."""
    try:
        from torch.nn.attention import flex_attention
    except ImportError:
        return False
    return hasattr(flex_attention, "AuxRequest") and importlib.util.find_spec("triton") is not None
