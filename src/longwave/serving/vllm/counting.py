"""How many requests ran at which t: a metric of Prometheus beside vLLM's own, and the log."""

from __future__ import annotations

import logging
from functools import cache
from threading import Lock
from typing import Any

logger = logging.getLogger("vllm.longwave")

_LOCK = Lock()  # vLLM may admit requests in several threads, and a metric may be made once


@cache
def _made() -> Any:
    from prometheus_client import Counter

    return Counter("longwave_requests", "Requests by their length factor.", ["rope_factor"])


def _counter() -> Any:
    with _LOCK:
        return _made()


def count(factor: float, request: Any) -> None:
    """Count a request that was given its t."""
    _counter().labels(rope_factor=f"{factor:g}").inc()
    logger.debug("request %s runs at length factor %g", request.request_id, factor)
