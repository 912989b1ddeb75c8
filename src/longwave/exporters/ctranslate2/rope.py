"""The engine's `Su` rotary embedding with the factors of a snapshot.

Every self-attention gets the type `Su` and the factors as both its short and its long ones. The engine computes
θ_i = 1/(λ_i·b^(2i/d)) from them in float32. Its attention factor on cos and sin is √(1 + ln m / ln n), of
m = ⌊max / original⌋ and n = original_max_position_embeddings, which decide nothing else here: `lengths_for`
finds the pair that gives the snapshot's.

Source: OpenNMT/CTranslate2, src/layers/attention_layer.cc; python/ctranslate2/converters/transformers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from longwave.exporters.base import Unsupported

FACTORS = ("rotary_scaling_short_factor", "rotary_scaling_long_factor")


@dataclass(frozen=True, eq=False)
class Su:
    """What one self-attention needs to rotate by θ_i = 1/(λ_i·b^(2i/d)).

    Arguments:
        factors: λ, float32, [d/2].
        base: b.
        head_dim: dimensions of a head.
        lengths: original and longest, see `lengths_for`.
    """

    factors: np.ndarray
    base: float
    head_dim: int
    lengths: tuple[int, int]

    def put_on(self, attention: Any) -> None:
        """Write the attributes of an attention past its `setattr`, which refuses those that its loader did not make."""
        original, longest = self.lengths
        vars(attention).update(
            {
                "rotary_dim": np.int32(2 * len(self.factors)),
                "rotary_base": np.float32(self.base),
                "rotary_scaling_type": np.int8(1),  # RotaryScalingType.Su
                "head_dim": np.int32(self.head_dim),
                "original_max_position_embeddings": np.int32(original),
                "max_position_embeddings": np.int32(longest),
            }
            | dict.fromkeys(FACTORS, self.factors)
        )


def lengths_for(scaling: float) -> tuple[int, int]:
    """The two position counts from which the engine computes this attention factor in float32: √(1 + ln m / ln n).

    Raises:
        Unsupported: if there are none.
    """
    if scaling == 1:
        return 0, 0  # absent
    if scaling > 1:
        power, small = scaling**2 - 1, np.arange(2, 1 << 16)
        with np.errstate(over="ignore"):  # of m = n^power the larger is rounded, as the finer choice
            large = np.rint(small.astype(np.float64) ** max(power, 1 / power))
            fits = (large > 1) & (small * large < 2**31)
        pairs = np.stack([small, large] if power > 1 else [large, small], -1)[fits].astype(np.int64)
        original, ratio = pairs.T
        logs = np.log(ratio.astype(np.float32)).astype(np.float64), np.log(original.astype(np.float64))
        found = np.flatnonzero(np.sqrt(1 + logs[0] / logs[1]).astype(np.float32) == np.float32(scaling))
        if len(found):
            first = found[0]
            return int(original[first]), int(original[first] * ratio[first])
    raise Unsupported(
        f"CTranslate2 cannot scale attention by {scaling:.7g}: it has 1 and what it computes from lengths, from 1.017 "
        "on. Export with --log-n drop or at another factor."
    )
