"""Attention of a chunk at the edge of a band: n queries and n keys, of which a triangle counts."""

from __future__ import annotations

import torch
from torch import Tensor

from longwave.attention.kernels import with_lse


def before(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Query i sees the keys j <= i of as many keys. Output [1, H, n, D] and log-sum-exp [1, H, n].

    Arguments:
        query: [1, H, n, D]; key, value: [1, H_kv, n, D]; head h reads the keys of head ⌊h/(H/H_kv)⌋.
        scale: of the logits.
    """
    if query.device.type == "cpu" and not torch.is_grad_enabled():  # this kernel skips what does not count
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return output, lse
    count = query.shape[2]
    mask = torch.ones(count, count, dtype=torch.bool, device=query.device).tril()
    return with_lse(query, key, value, mask[None, None], scale)
