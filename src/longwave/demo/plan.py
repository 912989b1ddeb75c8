"""What the demo does, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from longwave.extensions.spec import parse_spec


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does: the defaults are for two CPU cores and ten minutes.

    Arguments:
        max_factor: the largest length factor t.
        steps: of each training; scalars alone have half of them.
        batch_size: of each training, in original lengths.
        lengths: where perplexity and passkey retrieval are measured.
        windows: of text, for perplexity; the last 64 tokens of each are scored.
        trials: passkey prompts for each length.
        text: characters of each split, None for the whole standard library.
    """

    max_factor: float = 16
    steps: int = 60  # fewer than the recipe has: the whole demo is to end within ten minutes
    batch_size: int = 16
    lengths: tuple[str, ...] = ("1x", "2x", "4x", "8x", "16x")
    windows: int = 32
    trials: int = 10
    text: int | None = None
    seed: int = 0


QUICK = DemoSettings(max_factor=4, steps=6, batch_size=4, lengths=("1x", "2x", "4x"), windows=8, trials=4, text=100_000)
LONGEST = 4  # real windows of the recipe, in original lengths

# What CLEX was trained with before: all weights, real windows up to the largest length, and the original window, which
# all weights would forget otherwise. Eight chunks rather than one break leave fewer distances unseen.
CLEX: dict[str, Any] = {
    "row_length": "1x",
    "lr": 2e-4,
    "field_lr": 3e-3,
    "chunks": 8,
    "short_share": 0.3,
    "long_share": 0.6,
    "log_n": 1.0,
}


@dataclass(frozen=True)
class Row:
    """A row of the table: a method on the base model as it is, or on one trained with it.

    Arguments:
        label: in the table.
        method: as `longwave.extend` takes it.
        name: of the folder of a trained row.
        training: settings of `longwave.train` beside the method's own recipe; None without training.
        short: whether its real windows end at `LONGEST`, and not at the largest length.
        half: whether half of the steps are enough.
    """

    label: str
    method: str
    name: str | None = None
    training: Mapping[str, Any] | None = None
    short: bool = True
    half: bool = False

    @property
    def key(self) -> str:
        return self.name or self.method

    @property
    def log_n(self) -> float:
        """The exponent of log-n that it starts from."""
        given = (self.training or {}).get("log_n")
        return float(parse_spec(self.method).log_n if given is None else given)

    def settings(self, demo: DemoSettings, original_length: int) -> dict[str, Any]:
        """Of `longwave.train`. Every training reads as many tokens a step."""
        given = {"method": self.method, **(self.training or {})}
        longest = min(LONGEST, demo.max_factor) if self.short else demo.max_factor
        rows = str({**parse_spec(self.method).recipe, **given}["row_length"])
        row = 2.0 if rows == "auto" else float(rows.removesuffix("x"))
        return given | {
            "train_length": int(longest * original_length),
            "max_factor": demo.max_factor,
            "steps": max(1, demo.steps // 2) if self.half else demo.steps,
            "batch_size": max(1, int(demo.batch_size / row)),
            "seed": demo.seed,
        }


ROWS = (
    Row("unscaled", "none"),
    Row("dynamic YaRN", "yarn"),
    Row("two-band", "two-band"),
    Row("scalars", "two-band", "scalars", {"freeze_weights": True, "lora": "none"}, half=True),
    Row("scalars + LoRA", "two-band", "recipe", {}),
    Row("CLEX, all weights", "clex", "clex-tuned", CLEX, short=False),
)


def cpu_precision() -> str:
    """bfloat16 where the CPU multiplies it, twice as fast as float32 there and far slower elsewhere."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
