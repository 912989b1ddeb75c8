"""Counts of a server in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from longwave.serving.jobs import Task

PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # the content type of the format


class Metrics:
    """What was asked and answered since the start. May be counted from any thread.

    Arguments:
        max_factor: the largest t.
    """

    def __init__(self, max_factor: float) -> None:
        self.bounds = [1.0]
        while self.bounds[-1] < max_factor:
            self.bounds.append(min(2 * self.bounds[-1], max_factor))
        self.lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.factors: Counter[float] = Counter()
        self.sum_of_factors = 0.0
        self.prompt_tokens = self.new_tokens = 0

    def replied(self, status: int) -> None:
        """A request was answered, or hung up."""
        with self.lock:
            self.statuses[status] += 1

    def generated(self, task: Task, new: int) -> None:
        """A task was computed, or given up after so many new tokens."""
        with self.lock:
            self.prompt_tokens += len(task.ids)
            self.new_tokens += new
            self.sum_of_factors += task.factor
            self.factors[next(bound for bound in (*self.bounds, float("inf")) if task.factor <= bound)] += 1

    def text(self, running: int, queued: int) -> str:
        """Everything, with the number of tasks that run and that wait."""
        with self.lock:
            statuses = {f'{{status="{status}"}}': count for status, count in sorted(self.statuses.items())}
            lines = [
                *family("requests_total", "counter", "Requests under /v1 by status; 499 hung up.", statuses),
                *family("running", "gauge", "Prompts that are computed.", {"": running}),
                *family("queued", "gauge", "Prompts that wait.", {"": queued}),
                *family("prompt_tokens_total", "counter", "Tokens of prompts read.", {"": self.prompt_tokens}),
                *family("generated_tokens_total", "counter", "Tokens of answers.", {"": self.new_tokens}),
                *family("factor", "histogram", "Prompts by length factor t.", self.buckets()),
            ]
        return "\n".join(lines) + "\n"

    def buckets(self) -> dict[str, float]:
        counts, total = {}, 0
        for bound in self.bounds:
            total += self.factors[bound]
            counts[f'_bucket{{le="{bound:g}"}}'] = float(total)
        whole = float(self.factors.total())
        return counts | {'_bucket{le="+Inf"}': whole, "_sum": self.sum_of_factors, "_count": whole}


def family(name: str, kind: str, help: str, samples: Mapping[str, float]) -> list[str]:
    """The lines of one metric: what it is, and a sample for each ending of its name."""
    name = f"longwave_{name}"
    return [
        f"# HELP {name} {help}",
        f"# TYPE {name} {kind}",
        *(f"{name}{ending} {value:.12g}" for ending, value in samples.items()),
    ]
