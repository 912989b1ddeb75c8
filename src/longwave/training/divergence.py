"""A run whose loss has left its level for good is given up; the checkpoints from before are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longwave.training.checkpoints import checkpoints
from longwave.training.config import TrainConfig

DECAY = 0.9  # of the running mean: about ten steps count


class Diverged(ValueError):
    """The loss stayed far above its running level."""


class StopOnDivergence(TrainerCallback):
    """Raises `Diverged` after `stop_steps` losses in a row that are `stop_rise` nats above the lowest running mean.

    The rise is a difference and no ratio: three nats are a perplexity 20 times as high, whatever it was before. Losses
    of single steps scatter by their t, which is why one step decides nothing. While the loss is high no checkpoint is
    written, unless a signal asks for one; so the last one is from before.

    Arguments:
        config: `stop_rise`, 0 for never, and `stop_steps`.
        told: called with the reason before the run ends, in the process that writes; None for nobody.
        losses: of the steps so far, where the run goes on.
    """

    def __init__(
        self, config: TrainConfig, told: Callable[[str], None] | None = None, losses: Iterable[float] = ()
    ) -> None:
        self.rise, self.steps, self.told = config.stop_rise, config.stop_steps, told
        self.lowest: float | None = None
        self.high = 0
        self._total, self._weight = 0.0, 0.0
        for loss in losses:
            self._is_high(loss)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> TrainerControl:
        row = others.get("logs") or {}
        if "loss" in row and "factors" in row:
            self.follow(row["loss"], row["step"], Path(str(args.output_dir)))
            control.should_save = control.should_save and not self.high
        return control

    def follow(self, loss: float, step: int, root: Path) -> None:
        """Take the loss of a step into account.

        Raises:
            Diverged: if it was high for too long.
        """
        if self._is_high(loss):
            self.high += 1
            if self.high >= self.steps:
                self._give_up(loss, step, root)
        else:
            self.high = 0

    def _is_high(self, loss: float) -> bool:
        """Whether a loss is far above the level; if not, it is part of it."""
        if self.rise and self.lowest is not None and loss > self.lowest + self.rise:
            return True
        self._total, self._weight = DECAY * self._total + loss, DECAY * self._weight + 1
        mean = self._total / self._weight
        self.lowest = mean if self.lowest is None else min(mean, self.lowest)
        return False

    def _give_up(self, loss: float, step: int, root: Path) -> None:
        last = checkpoints(root)
        what = f"Go on from {last[-1].name} (--resume)" if last else "Start again: there is no checkpoint yet,"
        reason = (
            f"the loss is {loss:.3g} at step {step}, and for {self.steps} steps more than {self.rise:g} above its "
            f"level of {self.lowest:.3g}: training stopped. {what} with a smaller lr or field lr. "
            "--stop-rise 0 never stops."
        )
        if self.told is not None:
            self.told(reason)
        raise Diverged(reason)
