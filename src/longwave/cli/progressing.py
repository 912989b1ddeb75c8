"""The progress of a measurement: a bar on a terminal, plain lines elsewhere, in a log for example."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 60.0  # seconds between lines while nothing is finished


class Meter(Protocol):
    """What a measurement reports its progress to."""

    def start(self, name: str) -> Callable[[int], None]:
        """Begin what has that name; returns a callback for the number of tokens read."""

    def finished(self, what: str, number: int, of: int) -> None:
        """Report that something is done.

        Arguments:
            what: its name and values.
            number: how many are done now.
            of: how many there are.
        """


@contextmanager
def progress(total: int) -> Iterator[Meter]:
    """A meter on stderr for `total` tokens, with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bar(bar, bar.add_task("reading", total=total))


class Bar:
    """A bar that moves; values come in the tables."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def start(self, name: str) -> Callable[[int], None]:
        self.bar.update(self.task, description=name)
        return lambda tokens: self.bar.advance(self.task, tokens)

    def finished(self, what: str, number: int, of: int) -> None:
        pass


class Lines:
    """Prints a line when something is finished, and a line a minute in between."""

    def __init__(self, total: int) -> None:
        self.total, self.read = total, 0
        self.started = self.told = time.monotonic()

    def start(self, name: str) -> Callable[[int], None]:
        def advance(tokens: int) -> None:
            self.read += tokens
            if time.monotonic() - self.told >= EVERY:
                self._tell(f"{name}: {100 * self.read / self.total:.0f} % of all is read{self._left()}")

        return advance

    def finished(self, what: str, number: int, of: int) -> None:
        self._tell(f"[{number}/{of}] {what}{self._left() if number < of else ''}")

    def _tell(self, line: str) -> None:
        typer.echo(line, err=True)
        self.told = time.monotonic()

    def _left(self) -> str:
        if not 0 < self.read < self.total:
            return ""
        return f"; about {duration((time.monotonic() - self.started) * (self.total / self.read - 1))} left"


def duration(seconds: float) -> str:
    """Whole seconds, minutes, or hours: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
