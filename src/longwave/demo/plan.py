"""What the demo does, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does: the defaults are for two CPU cores and ten minutes.

    Arguments:
        max_factor: the largest length factor t.
        steps, batch_size: of each fine-tuning, on rows of the original length and real windows up to the largest.
        lengths: where perplexity and passkey retrieval are measured.
        windows: of text, for perplexity; the last 64 tokens of each are scored.
        trials: passkey prompts for each length.
        text: characters of each split, None for the whole standard library.
    """

    max_factor: float = 16
    steps: int = 240
    batch_size: int = 16
    lengths: tuple[str, ...] = ("1x", "2x", "4x", "8x", "16x")
    windows: int = 48
    trials: int = 10
    text: int | None = None
    seed: int = 0


QUICK = DemoSettings(max_factor=4, steps=6, batch_size=4, lengths=("1x", "2x", "4x"), windows=8, trials=4, text=100_000)

# What both fine-tunings share, so that only the method differs. Eight chunks rather than one break leave
# fewer distances unseen, real windows show how dense a long context is, and the original window stays in practice.
TRAINING: dict[str, Any] = {
    "lr": 2e-4,
    "field_lr": 3e-3,
    "chunks": 8,
    "short_share": 0.3,
    "long_share": 0.6,
    "log_n": 1.0,
}


@dataclass(frozen=True)
class Row:
    """A row of the table: a method on the base model as it is, or on one fine-tuned with it."""

    label: str
    method: str
    fine_tuned: bool = False

    @property
    def key(self) -> str:
        return f"{self.method}-tuned" if self.fine_tuned else self.method


ROWS = (
    Row("unscaled", "none"),
    Row("PI", "linear"),
    Row("dynamic NTK", "ntk"),
    Row("dynamic YaRN", "yarn"),
    Row("NTK, tuned", "ntk", fine_tuned=True),
    Row("CLEX, tuned", "clex", fine_tuned=True),
)


def cpu_precision() -> str:
    """bfloat16 where the CPU multiplies it, twice as fast as float32 there and far slower elsewhere."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
