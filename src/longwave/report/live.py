"""The page of a run, refreshed while it goes: curves, the t that were drawn, held-out perplexity, trajectories."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longwave.extensions.handle import find_extension
from longwave.files import write_text
from longwave.layout import LIVE_REPORT, METRICS
from longwave.methods.none import Unscaled
from longwave.report.html import page
from longwave.report.sources import read_training
from longwave.trajectory import Trajectory

EVERY = 60.0  # seconds at least between two pages
SHARE = 0.01  # of the time that pages may take: a slow page is written less often

logger = logging.getLogger("longwave")


class LivePage(TrainerCallback):
    """Writes `report.html` into the output folder of a run. A page that fails is told once and stops no run.

    Arguments:
        output: the folder of the run.
        every: seconds at least between two pages.
    """

    def __init__(self, output: Path, every: float = EVERY) -> None:
        self.output, self.every = output, every
        self._next = time.monotonic() + every
        self._told = False
        self._model: nn.Module | None = None  # from the first step on, in the process that writes

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._model = more.get("model")
        if state.global_step > 1 and time.monotonic() >= self._next:
            start = time.monotonic()
            self.write(refresh=round(max(self.every, 1)))
            end = time.monotonic()
            self._next = end + max(self.every, (end - start) / SHARE)

    def close(self) -> None:
        """Write the last page, whatever the run has come to; none for a run that has made no step."""
        if self._model is not None:
            self.write()

    def write(self, *, refresh: int | None = None) -> None:
        """Write the page. A browser that shows it reads it again after `refresh` seconds; None for a last page."""
        try:
            training = read_training(self.output / METRICS)
            text = page(
                [], trainings=[training], trajectories=trajectories(self._model), refresh=refresh,
                title=f"Training of {self.output.name}",
            )  # fmt: skip
            write_text(self.output / LIVE_REPORT, text)
        except Exception as error:
            if not self._told:
                logger.warning("%s was not written: %s", self.output / LIVE_REPORT, error)
            self._told = True


@torch.no_grad()
def trajectories(model: nn.Module | None) -> dict[str, Trajectory]:
    """The trajectories that the model has now beside its plain frequencies; none where they are divided or fixed."""
    handle = None if model is None else find_extension(getattr(model, "module", model))
    if handle is None or not any(parameter.requires_grad for parameter in handle.trajectory.parameters()):
        return {}
    if any(type(parameter) is not nn.Parameter for parameter in handle.trajectory.parameters()):
        return {}
    now = copy.deepcopy(handle.trajectory).cpu().requires_grad_(False)
    return {handle.spec: now, "none": Unscaled(now.rope, now.max_factor)}
