"""A run that is asked to stop: it ends its step, makes a checkpoint, and says that it was stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import get_worker_info
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longwave.training.processes import largest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
logger = logging.getLogger("longwave")


class Stopped(KeyboardInterrupt):
    """A signal has stopped a training; the output folder holds a checkpoint and no model yet.

    Like the interrupt that it is, it passes an `except Exception`: what would use the model must not run.

    Attributes:
        step: the last step that was taken.
        code: for the exit of the process: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step} of {steps}")
        self.step, self.code = step, 128 + number


class StopOnSignal(TrainerCallback):
    """Stops training after the step in which any process got SIGINT or SIGTERM. A second SIGINT interrupts at once.

    Also makes the checkpoint of a run that another callback has stopped. It must be the last of the callbacks.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; that of another process, too, once all have agreed
        self._interrupts = 0
        self._process = os.getpid()
        self._saved = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within, the signals ask for a stop. Only the main thread can catch signals: elsewhere they act as before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def reason(self) -> str:
        """What stopped the run, for its record."""
        return signal.Signals(self.number).name if self.number else "callback"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self._saved = state.global_step  # it goes on from there

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self.number = largest(self.number, args.device)
        if self.number:
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self._saved = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if control.should_training_stop and state.global_step != self._saved:
            control.should_save = True

    def _catch(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a process that loads data
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if not self.number and int(os.environ.get("RANK", 0)) == 0:
            name = signal.Signals(number).name
            again = ". A second SIGINT (Ctrl-C) stops at once, without it" if number == signal.SIGINT else ""
            with suppress(RuntimeError):  # the signal came in the middle of another line
                logger.warning("%s: the run stops after this step and makes a checkpoint%s.", name, again)
        self.number = self.number or number


class Shielded:
    """A collator whose loading processes ignore the signals: a launcher sends them to every process it knows.

    The training process ends them. If it is gone they end themselves.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self._process = os.getpid()

    def __call__(self, items: Any) -> Any:
        if self._process != os.getpid() and get_worker_info() is not None:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self._process = os.getpid()
        return self.collate(items)
