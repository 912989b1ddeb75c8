"""The library's warnings about a model, on stderr while a command runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer


class Notes(logging.Handler):
    """Prints each warning of the library once: a command may open the same model several times."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.said:
            self.said.add(message)
            typer.echo(message, err=True)


def off_stdout(record: logging.LogRecord) -> bool:
    """DeepSpeed logs to stdout, from its import on, where `--json` promises JSON and nothing else."""
    if record.levelno >= logging.ERROR:
        typer.echo(f"DeepSpeed: {record.getMessage()}", err=True)
    return False


@contextmanager
def notes() -> Iterator[None]:
    """Within, warnings of the library are printed, and DeepSpeed's errors alone; for the length of one command."""
    logger, handler = logging.getLogger("longwave"), Notes()
    deepspeed = logging.getLogger("DeepSpeed")
    logger.addHandler(handler)
    deepspeed.addFilter(off_stdout)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        deepspeed.removeFilter(off_stdout)
