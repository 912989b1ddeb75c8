"""Checkpoints that get their manifest and their name while the training goes on."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from longwave.training.checkpoints import publish


class Publisher:
    """Publishes one checkpoint at a time, in a thread: to hash 84 GB, those of a 7 B model, takes about a minute.

    Arguments:
        root: the folder of the checkpoints.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, name: str, *, keep: int) -> None:
        """Begin to publish a checkpoint whose files are all written."""
        self.wait()
        self._thread = Thread(target=self._publish, args=(name, keep), name="longwave-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint has its name. Raises what went wrong, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _publish(self, name: str, keep: int) -> None:
        try:
            publish(self.root, name, keep=keep)
        except BaseException as error:  # raised where the training waits
            self._error = error
