"""What a model was pre-trained with: its rotary inverse frequencies and its context length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rope:
    """The pre-trained rotary embedding, the fixed point z(1) of every trajectory.

    Query and key pairs at position p turn by the angle p·θ_i. The frequencies are taken from the
    model as they are: a model that already carries scaled ones (Llama 3.1, say) keeps them.

    Arguments:
        inv_freq: θ_i(1) in rad/token, shape [d/2], all positive; kept in float64 on the CPU.
        original_length: L, the context length of pre-training, in tokens (at least 2).
        base: `rope_theta`, where known. Only the by-parts ramp of YaRN uses it; None derives it
            from the first two frequencies.

    Raises:
        ValueError: if the frequencies are not a positive vector or the length is below 2.

    Source: RoFormer (arXiv 2104.09864).
    """

    inv_freq: Tensor
    original_length: int
    base: float | None = None

    def __post_init__(self) -> None:
        inv_freq = self.inv_freq.detach().to("cpu", torch.float64).clone()
        if inv_freq.ndim != 1 or inv_freq.numel() == 0 or not bool((inv_freq > 0).all()):
            raise ValueError(
                f"inv_freq must be a vector of positive frequencies, got shape {tuple(inv_freq.shape)}. "
                "Pass the model's own `rotary_emb.inv_freq`."
            )
        if self.original_length < 2:
            raise ValueError(f"original_length must be at least 2 tokens, got {self.original_length}.")
        object.__setattr__(self, "inv_freq", inv_freq)
        if self.base is None:
            object.__setattr__(self, "base", self._base_from_frequencies())

    def _base_from_frequencies(self) -> float:
        """b from θ_0/θ_1 = b^(2/d): the fastest pairs are the ones that no method rescales."""
        if self.inv_freq.numel() < 2:
            return 10_000.0  # a single pair: no ratio to read the base from, nothing depends on it
        ratio = float(self.inv_freq[0] / self.inv_freq[1])
        return float(ratio ** (self.rotary_dim / 2))

    @property
    def rotary_dim(self) -> int:
        """d, the number of rotated dimensions of a head."""
        return 2 * self.inv_freq.numel()

    @property
    def powers(self) -> Tensor:
        """b^(2i/d), float32, shape [d/2], computed as transformers computes it."""
        assert self.base is not None  # __post_init__ fills it in
        index = torch.arange(0, self.rotary_dim, 2, dtype=torch.int64, device="cpu").float() / self.rotary_dim
        powers: Tensor = self.base**index
        return powers

    @property
    def factors(self) -> Tensor:
        """λ_i(1) in θ_i(1) = 1/(λ_i(1)·b^(2i/d)), float32: all 1, but for a model trained with scaled frequencies."""
        factors = 1 / (self.inv_freq * self.powers.double())
        return torch.where((factors - 1).abs() < 1e-6, 1.0, factors).float()

    @property
    def log_freq(self) -> Tensor:
        """z(1) = ln θ(1), float64, shape [d/2]."""
        return self.inv_freq.log()

    @property
    def wavelength(self) -> Tensor:
        """Tokens per full rotation, 2π/θ_i, float64, shape [d/2]."""
        return 2 * math.pi / self.inv_freq
