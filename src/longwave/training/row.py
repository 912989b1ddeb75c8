"""One optimizer step: what was drawn for it, and the row of metrics.jsonl that it becomes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from longwave.training.draw import Draw


class Drawn(NamedTuple):
    """What a row tells of one micro-batch: its number in the run, t, and a digest of its positions."""

    number: int
    t: float
    digest: str


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

    @property
    def drawn(self) -> list[Drawn]:
        """Its micro-batches, as far as this process has them."""
        digests = (hashlib.sha256(draw.positions.numpy().tobytes()).hexdigest() for draw in self.draws)
        return [Drawn(draw.number, draw.t, digest) for draw, digest in zip(self.draws, digests, strict=True)]

    def row(
        self, logs: dict[str, Any], *, done: int, gather: Callable[[list[Drawn]], list[Drawn]] = list
    ) -> dict[str, Any]:
        """The row of a step that is over.

        Arguments:
            logs: `loss` and `grad_norm`.
            done: steps so far, this one included.
            gather: of all processes, the micro-batches of each.
        """
        now = time.perf_counter()
        spent, self._clock = now - self._clock, now
        # In the order of the run, whatever process had them; processes that share rows have the same.
        every = sorted(set(gather(self.drawn)))
        digests = [drawn.digest for drawn in every]
        places = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return {
            "step": done,
            "loss": logs["loss"],
            "lr": self.rates.get("decayed", self.rates.get("plain", 0.0)),
            "field_lr": self.rates.get("field", 0.0),
            "grad_norm": float(logs["grad_norm"]),
            "field_grad_norm": None if self.field_norm is None else float(self.field_norm),
            "tokens": len(every) * self.draws[0].positions.numel() * done,
            "factors": [drawn.t for drawn in every],
            "positions": places[:12],
            "seconds": round(spent, 4),
        }
