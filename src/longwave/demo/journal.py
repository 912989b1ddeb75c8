"""Steps that are run once: what a step returned is kept as JSON, and a restarted run takes it from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from longwave.files import make_folder, prepare_output, read_json, write_json
from longwave.training.checkpoints import discard

SETTINGS, STEPS = "demo.json", "steps"


class Journal:
    """Runs steps, prints how long each took, and writes what it returned to `steps/NAME.json`.

    Arguments:
        folder: a new folder, or one of the same settings, whose finished steps are then reused.
        settings: JSON-able; everything that the steps' results depend on.
        steps: how many there will be, for the counter.
        console: where to print.
        made: folders that the steps make, and go on in after an interrupt.
        overwrite: start over: the steps of the run in `folder` and what they made are deleted.

    Raises:
        ValueError: if the folder holds something else, or other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        *,
        steps: int,
        console: Console,
        made: Sequence[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.folder, self.total, self.console = folder, steps, console
        self.seconds: dict[str, float] = {}
        record = folder / SETTINGS
        if not record.exists():
            prepare_output(folder, overwrite=overwrite)
        elif overwrite:
            for name in (STEPS, *made):
                discard(folder / name)
        elif read_json(record) != settings:
            raise ValueError(
                f"output folder {folder} holds a run with other settings. Choose another or pass --overwrite."
            )
        make_folder(folder / STEPS)
        write_json(record, settings)

    def step(self, name: str, title: str, compute: Callable[[], Any]) -> Any:
        """The JSON-able value of `compute()`, from an earlier run if there was one."""
        path = self.folder / STEPS / f"{name}.json"
        head = f"[bold]{len(self.seconds) + 1:2d}/{self.total}[/bold] {title}"
        if path.exists():
            kept = read_json(path)
            self.seconds[name] = kept["seconds"]
            self.console.print(f"{head}  [dim]kept from before[/dim]", highlight=False)
            return kept["value"]
        self.console.print(head, highlight=False)
        started = time.monotonic()
        value = compute()
        self.seconds[name] = round(time.monotonic() - started, 1)
        write_json(path, {"seconds": self.seconds[name], "value": value})
        self.console.print(f"      [dim]{self.seconds[name]:.0f} s[/dim]", highlight=False)
        return value
