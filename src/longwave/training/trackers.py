"""TensorBoard and Weights & Biases, through the Trainer's own callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from longwave.errors import install
from longwave.layout import TRACKED


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw: lists of t and hashes stay in metrics.jsonl."""
    return {name: value for name, value in logs.items() if isinstance(value, int | float)}


class _Numbers(TrainerCallback):
    """Passes numbers on to the tracker, and nothing else."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **others: Any
    ) -> None:
        super().on_log(args, state, control, logs=numbers(logs or {}), **others)


class TensorBoard(_Numbers, TensorBoardCallback):
    """Writes to the folder `tensorboard` of the output: the Trainer's own folder is deleted with the checkpoints."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.logging_dir = str(output / TRACKED)


class Wandb(_Numbers, WandbCallback):  # type: ignore[misc]  # it takes the model before the logs
    """Sends to the project `longwave`, unless WANDB_PROJECT names another."""

    def __init__(self, output: Path) -> None:
        os.environ.setdefault("WANDB_PROJECT", "longwave")
        super().__init__()


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb}


def check_tracker(name: str) -> None:
    """A `ValueError` for a tracker whose package is missing."""
    if name in TRACKERS and find_spec(name) is None:
        raise ValueError(f"--report-to {name} needs the package {name}. Run: {install(name)}")


def trackers(name: str, output: Path) -> list[TrainerCallback]:
    """The callback of a tracker; none for `none`."""
    check_tracker(name)
    return [TRACKERS[name](output)] if name in TRACKERS else []
