"""Rotary modules that scale queries by log-n, after they have rotated them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def scaled_class(kind: Any) -> Any:
    """A rotary class of vLLM whose queries grow with their position.

    The query in row r becomes q·s_r, or q·exp(e_h·s_r) where heads have exponents e_h. s_r is exactly 1 (or 0) within
    L, and q then keeps its bits.
    """

    class Scaled(kind):  # type: ignore[misc]
        def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None, *rest: Any) -> Any:
            query, key = super().forward(positions, query, key, *rest)
            scales = self.query_scales[positions.flatten()]
            heads = query.view(scales.shape[0], -1, self.head_size)
            if self.query_exponents is None:
                scale = scales[:, None, None]
            else:
                scale = torch.exp(scales[:, None] * self.query_exponents)[..., None]
            return (heads.float() * scale).to(query.dtype).view(query.shape), key

    Scaled.__name__ = Scaled.__qualname__ = f"LogN{kind.__name__}"
    return Scaled
