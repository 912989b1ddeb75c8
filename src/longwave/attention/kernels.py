"""Kernels that transformers does not call: decode with grouped queries on CPUs, and attention with its log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longwave.attention.gpu_kernels import chosen


def is_plain_decode(query: Tensor, key: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> bool:
    """Whether this is one query on the CPU that sees all keys, and each key is shared by several heads."""
    grouped = query.shape[2] == 1 and query.shape[1] != key.shape[1]
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))
    return (
        grouped and attention_mask is None and query.device.type == "cpu" and not special and not kwargs.get("dropout")
    )


def decode(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scaling) v. Heads that share a key are laid along the query axis.

    query [batch, heads, 1, d] -> [batch, key heads, group, d]: the kernel then reads each key once for its whole
    group. transformers asks for `enable_gqa` here, which on CPUs reads each key once for every head.
    """
    batch, heads, _, width = query.shape
    packed = query.view(batch, key.shape[1], heads // key.shape[1], width)
    output = scaled_dot_product_attention(packed, key, value, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1]), None


def with_lse(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale) v, and the log-sum-exp of the logits.

    Arguments:
        query: [B, H, n, D]; key, value: [B, H_kv, m, D]; head h reads the keys of head ⌊h/(H/H_kv)⌋.
        mask: bool, [B or 1, 1, n, m]: True where the query sees the key; None if it sees all.
        scale: of the logits.

    Returns:
        Output [B, H, n, D] and log-sum-exp [B, H, n], float32 or better. A query that sees no key has 0 and -inf.
    """
    batch, heads, tokens, width = query.shape
    group = heads // key.shape[1]
    if tokens == 1 and group > 1:  # the heads of one key take the place of the queries: each key is read once
        packed = query.reshape(batch, key.shape[1], group, width)
        output, lse = with_lse(packed, key, value, mask, scale)
        return output.reshape(batch, heads, 1, -1), lse.reshape(batch, heads, 1)
    kernel = chosen(query, key, value, mask) or (_flash_on_cpu if _is_on_cpu(query) else _matmul)
    output, lse = kernel(query, key, value, mask, scale)
    if mask is not None:
        nothing = ~mask.any(-1)
        lse = torch.where(nothing, float("-inf"), lse)
        output = torch.where(nothing[..., None], 0.0, output)
    return output, lse


def _is_on_cpu(query: Tensor) -> bool:
    return query.device.type == "cpu" and not torch.is_grad_enabled()


def _flash_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The kernel below `scaled_dot_product_attention`. Of a query that sees no key it says 0 and 0."""
    if mask is not None:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], -1)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return output, lse


def _matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Two products of matrices and a softmax, on any device."""
    packed = query.reshape(*key.shape[:2], -1, query.shape[-1])  # all queries of a key head: its keys are not repeated
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = (packed.to(wide) @ key.to(wide).mT).view(*query.shape[:3], -1) * scale  # bfloat16 would round logits
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    lse = logits.logsumexp(-1)
    weights = (logits - torch.where(lse.isneginf(), 0.0, lse)[..., None]).exp().to(value.dtype)
    return (weights.view(*packed.shape[:3], -1) @ value).view(*query.shape[:3], -1), lse
