"""A snapshot's frequencies as llama.cpp reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from longwave.exporters.base import Unsupported
from longwave.exporters.gguf.layout import Layout
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

NEAR = 1e-6  # of a frequency, relative: what float32 holds of it


@dataclass(frozen=True)
class Frequencies:
    """θ_i = base^(-2i/d) / (linear·factors_i): metadata, and factors [d/2] in float32 where there is a tensor."""

    base: float
    linear: float = 1.0
    factors: torch.Tensor | None = None


def frequencies(source: Source, snapshot: Snapshot, layout: Layout) -> Frequencies:
    """The snapshot as llama.cpp reads it, by factors, or where it knows none by base and linear scaling, exactly.

    Raises:
        Unsupported: if the architecture ignores factors and the frequencies are no geometric series.
    """
    base = source.rope.base
    assert base is not None
    if layout.factors:
        return Frequencies(base, factors=snapshot.factors)
    found = geometric(snapshot)
    if found is None:
        raise Unsupported(
            f"llama.cpp reads no frequency factors for {source.model_type}, and the frequencies at factor "
            f"{snapshot.factor:g} are no geometric series, which another base could express."
        )
    return found


def geometric(snapshot: Snapshot) -> Frequencies | None:
    """θ_i = b'^(-2i/d)/s through the first and the last frequency, if all the others are on it."""
    log_freq = snapshot.inv_freq.double().log()
    count = log_freq.numel()
    if count < 2:
        return None
    step = float(log_freq[0] - log_freq[-1]) / (count - 1)
    line = log_freq[0] - step * torch.arange(count, dtype=torch.float64, device="cpu")
    if step <= 0 or float((line - log_freq).abs().max()) > NEAR:
        return None
    linear = float((-log_freq[0]).exp())
    return Frequencies(math.exp(step * count), 1.0 if abs(linear - 1) < NEAR else linear)
