"""Records of the shapes that the commands write, with numbers made up for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from longwave.evaluation.results import PASSKEY, PERPLEXITY, Record, record
from longwave.evaluation.statistics import wilson

LENGTHS = (64, 128, 256)
WINDOWS = 12


def row(label: str, lengths: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    about = {"label": label, "method": "ntk", "schedule": "continuous", "max_factor": 4.0, "log_n": 0.0, "own": False}
    return {**about, **changes, "lengths": lengths}


def losses(length: int, ppl: float, *, positions: int = 0) -> dict[str, Any]:
    """Windows whose losses differ by text, the same way in every row: a paired comparison is sharp."""
    mean = math.log(ppl)
    nll = [64 * (mean + 0.3 * math.sin(window)) for window in range(WINDOWS)]
    shift = mean - sum(nll) / (64 * WINDOWS)
    nll = [value + 64 * shift for value in nll]
    found = {
        "length": length, "factor": max(1.0, length / 64), "windows": WINDOWS, "mean_nll": mean,
        "standard_error": 0.06, "ppl": ppl, "interval": [ppl * 0.9, ppl * 1.1],
        "ends": [256 * (window + 1) for window in range(WINDOWS)], "nll": nll, "tokens": [64] * WINDOWS,
    }  # fmt: skip
    if positions:
        step = length // positions
        bins = [
            {"start": k * step, "end": (k + 1) * step, "nll": mean + k / 10, "tokens": 99} for k in range(positions)
        ]
        found["by_position"] = bins
    return found


def hits(length: int, rate: float) -> dict[str, Any]:
    depths = [0.0, 0.5, 1.0]
    correct = [trial < round(rate * 12) for trial in range(12)]
    by_depth = {depth: [hit for trial, hit in enumerate(correct) if trial % 3 == k] for k, depth in enumerate(depths)}
    bounds = wilson(sum(correct), 12)
    return {
        "length": length, "factor": length / 64, "trials": 12, "rate": bounds.value,
        "interval": [bounds.low, bounds.high],
        "by_depth": [{"depth": depth, "rate": sum(found) / 4, "interval": [0, 1]} for depth, found in by_depth.items()],
        "depths": [depths[trial % 3] for trial in range(12)], "correct": correct,
    }  # fmt: skip


def perplexity(
    rows: Mapping[str, Sequence[float]],
    *,
    protocol: str = "same-targets",
    model: str = "base",
    data: Mapping[str, str] | None = None,
    original_length: int = 64,
    training_seed: int | None = None,
    positions: int = 0,
    own: bool = False,
) -> Record:
    made = [
        row(label, [losses(n, v, positions=positions) for n, v in zip(LENGTHS, values, strict=True)], own=own)
        for label, values in rows.items()
    ]
    about = {"path": model, "type": "llama"} | ({} if training_seed is None else {"training_seed": training_seed})
    settings = {"protocol": protocol, "windows": WINDOWS, "targets": 64, "stride": 256, "tokens": 9999}
    return record(PERPLEXITY, model=about, settings=settings, original_length=original_length, rows=made,
                  data=data or {"book.txt": "aa" * 32})  # fmt: skip


def retrieval(rows: Mapping[str, Sequence[float]], schema: str = PASSKEY) -> Record:
    made = [
        row(label, [hits(n, rate) for n, rate in zip(LENGTHS, rates, strict=True)]) for label, rates in rows.items()
    ]
    settings = {"trials": 12, "depths": 3} | ({"template": "short"} if schema == PASSKEY else {})
    return record(schema, model={"path": "base"}, settings=settings, original_length=64, rows=made, seed=7)


def metrics(steps: int = 30) -> list[dict[str, Any]]:
    return [
        {"step": k, "loss": 3 - 0.05 * k, "lr": 1e-4 / k, "field_lr": 0.0, "grad_norm": 1.0 + k % 3,
         "field_grad_norm": None if k < 3 else 2.0 + k, "tokens": 512 * k, "factors": [1.0]}
        for k in range(1, steps + 1)
    ]  # fmt: skip
