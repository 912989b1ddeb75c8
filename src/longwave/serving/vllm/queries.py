"""Rotary modules that scale queries by log-n, beside rotating them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def scaled_class(kind: Any) -> Any:
    """A rotary class of vLLM whose queries grow with their position, each head by its own exponent.

    The query in row r becomes q·exp(e_h·s_r), with the buffers `query_ratios` (s, one for each row) and
    `query_exponents` (e, one for each head). s_r is exactly 0 within L, and q then keeps its bits.
    """

    class Scaled(kind):  # type: ignore[misc]
        def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None, *rest: Any) -> Any:
            query, key = super().forward(positions, query, key, *rest)
            ratios = self.query_ratios[positions.flatten()]
            scales = torch.exp(ratios[:, None] * self.query_exponents)
            heads = query.view(ratios.shape[0], -1, self.head_size)
            return (heads * scales[..., None]).to(query.dtype).view(query.shape), key

    Scaled.__name__ = Scaled.__qualname__ = f"LogN{kind.__name__}"
    return Scaled


@cache
def tabled_class(kind: Any) -> Any:
    """The same where all heads have one exponent and are rotated whole: cos and sin of queries hold the scale.

    Queries pass the module `queries`, whose table is larger by exp(e·s_r), and keys pass this one. No tensor is made
    that was not made before: a product in float32 costs more than the rotation of a long prompt.
    """

    class Tabled(kind):  # type: ignore[misc]
        def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None, *rest: Any) -> Any:
            query = self.queries(positions, query, None, *rest)[0]
            return query, None if key is None else super().forward(positions, key, None, *rest)[0]

    Tabled.__name__ = Tabled.__qualname__ = f"LogNTable{kind.__name__}"
    return Tabled
