"""Listen, answer, and stop when told: the process around the API."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from longwave.serving.app import build_app
from longwave.serving.errors import draining
from longwave.serving.service import Service

FLUSH = 5  # seconds for connections to take what was computed, and for a last step of the model


class DrainingServer(uvicorn.Server):
    """A uvicorn server that finishes what it has accepted before it stops.

    The first SIGTERM or Ctrl-C refuses new requests with 503 and lets the worker finish. The second one, or the end of
    the time allowed, gives up what is left.

    Arguments:
        service: whose worker is to finish.
        config: of uvicorn.
        announce: called once requests are heard.
    """

    def __init__(self, service: Service, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.announce = service, announce
        self.deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by Python between any two lines: no lock is taken here."""
        now = time.monotonic()
        self.deadline = now + self.service.settings.drain if self.deadline is None else now
        self.service.worker.open = False

    async def on_tick(self, counter: int) -> bool:
        worker = self.service.worker
        if self.deadline is not None and not self.should_exit:
            late = time.monotonic() >= self.deadline
            if late:
                worker.refuse(draining())
            self.should_exit = late or worker.idle
        return await super().on_tick(counter)


def serve(service: Service, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Answer requests until the process is told to stop."""
    config = uvicorn.Config(
        build_app(service), http="h11", ws="none", lifespan="off", log_level="error", access_log=False,
        server_header=False, timeout_graceful_shutdown=FLUSH,
    )  # fmt: skip
    DrainingServer(service, config, announce).run(sockets=[listener])
    service.reader.shutdown(wait=False, cancel_futures=True)
    if not service.worker.stop(FLUSH):  # it reads a long prompt, and Python would wait for nothing
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
