"""A progress bar of a run: loss, length factor, tokens per second, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LINES = 20  # lines printed per run if there is no terminal for a bar


class ProgressCallback(TrainerCallback):
    """A rich bar on stderr; a line every twentieth of the run where stderr is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._loss: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if not (state.is_local_process_zero and self.console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[report]}"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, report="")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        row = others.get("logs") or {}
        if "factors" not in row or not state.is_local_process_zero:
            return
        loss = row["loss"]
        self.count(loss)
        speed = row["tokens"] / row["step"] / max(row["seconds"], 1e-9)
        factors = ", ".join(f"{t:.1f}" for t in row["factors"][:4])
        report = f"loss {loss:.3f} (running mean {self._loss:.3f})  t {factors}  {speed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], report=report)
        elif row["step"] % max(1, state.max_steps // LINES) == 0 or row["step"] == state.max_steps:
            self.console.print(f"step {row['step']}/{state.max_steps}  {report}", highlight=False, soft_wrap=True)

    def count(self, *losses: float) -> None:
        """Take the losses of some steps into the running mean: of a resumed run those before its checkpoint, too."""
        for loss in losses:
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
