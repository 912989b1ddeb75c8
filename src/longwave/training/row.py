"""One optimizer step: what was drawn for it, and the row of metrics.jsonl that it becomes."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from longwave.training.draw import Draw


class Step:
    """Collects what happens in an optimizer step; the next step begins with the first draw that has its number.

    Attributes:
        draws: of the micro-batches so far.
        rates: the learning rates that the step is taken with, by group of parameters.
        field_norm: norm of the field's gradient before clipping, None where field and weights are clipped together.
    """

    def __init__(self) -> None:
        self.draws: list[Draw] = []
        self.rates: dict[str, float] = {}
        self.field_norm: Any = None
        self._number, self._clock = -1, time.perf_counter()

    def add(self, number: int, draw: Draw) -> None:
        """A micro-batch of step `number`, counted from 0."""
        if self._number < 0:
            self._clock = time.perf_counter()
        if number != self._number:
            self.draws, self._number = [], number
        self.draws.append(draw)

    @property
    def factors(self) -> str:
        """The t of its micro-batches, for messages."""
        return ", ".join(f"{draw.t:.3g}" for draw in self.draws)

    def row(self, logs: dict[str, Any], *, done: int, processes: int) -> dict[str, Any]:
        """The row of a step that is over.

        Arguments:
            logs: `loss` and `grad_norm`.
            done: steps so far, this one included.
            processes: that each read as much.
        """
        now = time.perf_counter()
        spent, self._clock = now - self._clock, now
        tokens = sum(draw.positions.numel() for draw in self.draws) * processes
        places = hashlib.sha256(b"".join(draw.positions.numpy().tobytes() for draw in self.draws))
        return {
            "step": done,
            "loss": logs["loss"],
            "lr": self.rates.get("decayed", self.rates.get("plain", 0.0)),
            "field_lr": self.rates.get("field", 0.0),
            "grad_norm": float(logs["grad_norm"]),
            "field_grad_norm": None if self.field_norm is None else float(self.field_norm),
            "tokens": tokens * done,
            "factors": [draw.t for draw in self.draws],
            "positions": places.hexdigest()[:12],
            "seconds": round(spent, 4),
        }
