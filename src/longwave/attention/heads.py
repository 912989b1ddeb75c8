"""Mass and temperature of each head, as parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class HeadScalars(nn.Module):
    """β_h and e_h of every head of some layers. They start at the values that all heads share without them.

    The logits of the far band get -β_h·ln(max(1, keys/room)), see `Scoring`. The query at position p becomes
    q_p·max(1, ln(p + 1)/ln L)^e_h, see `LogN`.

    Arguments:
        layers: attention layers by their numbers in the order of the model.
        heads: query heads of a layer.
        mass: β at the start; None where the attention has no mass.
        log_n: e at the start.

    Source: longwave. Learned exponents of log-n: arXiv 2501.08570.
    """

    def __init__(self, layers: Sequence[int], heads: int, *, mass: float | None, log_n: float) -> None:
        super().__init__()
        self.rows = {layer: row for row, layer in enumerate(layers)}
        self.log_n = nn.Parameter(torch.full((len(layers), heads), float(log_n), dtype=torch.float32))
        shape = len(layers), heads
        start = None if mass is None else nn.Parameter(torch.full(shape, float(mass), dtype=torch.float32))
        self.mass: nn.Parameter | None
        self.register_parameter("mass", start)

    def mass_of(self, layer: int) -> Tensor | None:
        """β of a layer's heads, [H]; None where the attention has no mass."""
        return None if self.mass is None else self.mass[self.rows[layer]]

    @torch.no_grad()
    def constants(self, t: float, original_length: int) -> dict[int, tuple[float, ...]]:
        """Layer -> (ln tL/ln L)^e_h of each head: per-query log-n as the constant that it is for the last query."""
        ratio = math.log(max(1.0, t) * original_length) / math.log(original_length)
        found = (self.log_n.double() * math.log(ratio)).exp().tolist()
        return {layer: tuple(found[row]) for layer, row in self.rows.items()}

    def log_n_of(self, layer: int) -> Tensor:
        """e of a layer's heads, [H]."""
        row = self.rows[layer]
        if self.mass is not None and torch.is_grad_enabled():  # mass has a gradient at every t, of 0 within L
            return self.log_n[row] + 0.0 * self.mass[row]
        return self.log_n[row]
