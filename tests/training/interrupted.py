"""Runs that are interrupted, and how two runs compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from longwave.training.metrics import read_metrics

STEPS = {"steps": 12, "save_every": 4, "accumulation": 2, "batch_size": 2}
QUICK = {"steps": 6, "save_every": 2, "batch_size": 2, "train_length": 32, "method": "ntk"}


class Stop(TrainerCallback):
    """Leaves training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **others):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def exact(path: Path) -> list[dict[str, Any]]:
    """The rows without the clock."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(path)]


def same_result(one: Path, other: Path, *names: str) -> None:
    for name in names or ("longwave.safetensors", "model/model.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def command(model: Path, book: Path, output: Path, *extra: str) -> list[str]:
    # fmt: off
    return [
        sys.executable, "-m", "longwave", "train", str(model), "--data", str(book), "--output", str(output),
        "--train-length", "48", "--max-factor", "8", "--steps", "60", "--save-every", "10", "--batch-size", "4",
        "--lr", "1e-3", "--method", "clex", *extra,
    ]
    # fmt: on
