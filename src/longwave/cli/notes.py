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


@contextmanager
def notes() -> Iterator[None]:
    """Within, warnings of the library are printed; for the length of one command."""
    logger, handler = logging.getLogger("longwave"), Notes()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
