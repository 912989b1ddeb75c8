"""Dot products of one query per head with all its keys, for selections: float32 or better, and no copy of the keys."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8192  # keys that are made float32 at a time, where they are narrower


def dot(q: Tensor, k: Tensor, first: int, stop: int) -> Tensor:
    """s[h, j] = <q[h], k[⌊h/G⌋, first + j]>, without a scale.

    A softmax of unscaled logits in bfloat16 ends in zeros and ties, so that products are summed in float32.

    Arguments:
        q: [H, D].
        k: [H_kv, m, D], H = G·H_kv.
        first, stop: the keys first <= j < stop.

    Returns:
        [H, stop - first], float32, or float64 if the keys are.
    """
    if k.device.type == "cuda" and k.dtype != torch.float64:
        from longwave.attention import gpu_dot

        if gpu_dot.AVAILABLE:
            return gpu_dot.dot(q, k, first, stop)
    return torch_dot(q, k, first, stop)


def torch_dot(q: Tensor, k: Tensor, first: int, stop: int) -> Tensor:
    """`dot` in PyTorch, on any device."""
    wide = torch.promote_types(k.dtype, torch.float32)
    grouped = q.to(wide).reshape(k.shape[0], -1, q.shape[-1])
    if k.dtype == wide:
        return (grouped @ k[:, first:stop].mT).flatten(0, 1)
    blocks = [grouped @ k[:, at : min(at + BLOCK, stop)].to(wide).mT for at in range(first, stop, BLOCK)]
    return torch.cat(blocks, -1).flatten(0, 1) if blocks else grouped.new_empty(q.shape[0], 0)
