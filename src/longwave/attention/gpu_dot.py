"""`dot` as a Triton kernel, for keys on a GPU: it reads them where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU, no Triton: `longwave.attention.dot` then uses PyTorch
    triton = None

AVAILABLE = triton is not None and torch.cuda.is_available()
TILE = 128  # keys of a program


def dot(q: Tensor, k: Tensor, first: int, stop: int) -> Tensor:
    """See `longwave.attention.dot.dot`. A program reads the keys of one key head once, for all heads that share it."""
    heads, width, count = q.shape[0], q.shape[1], stop - first
    scores = torch.empty(heads, count, dtype=torch.float32, device=q.device)
    if count == 0:
        return scores
    group = heads // k.shape[0]
    sizes: dict[str, Any] = {"WIDTH": triton.next_power_of_2(width), "TILE": TILE}
    q, k = q.contiguous(), k if k.stride(-1) == 1 else k.contiguous()
    _kernel[(k.shape[0], triton.cdiv(count, TILE))](
        q, k, scores, first, count, group, width, k.stride(0), k.stride(1), **sizes
    )
    return scores


if triton is not None:

    @triton.jit
    def _kernel(  # type: ignore[no-untyped-def]
        q, k, scores, first, count, group, width, head_stride, key_stride,
        WIDTH: tl.constexpr, TILE: tl.constexpr,
    ):  # fmt: skip
        head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        key, dim = tile * TILE + tl.arange(0, TILE), tl.arange(0, WIDTH)
        inside = key < count
        where = k + head * head_stride + (first + key)[:, None] * key_stride + dim[None, :]
        keys = tl.load(where, mask=inside[:, None] & (dim < width)[None, :], other=0.0).to(tl.float32)
        for at in range(group):
            query = tl.load(q + (head * group + at) * width + dim, mask=dim < width, other=0.0).to(tl.float32)
            tl.store(scores + (head * group + at) * count + key, tl.sum(keys * query[None, :], axis=1), mask=inside)
