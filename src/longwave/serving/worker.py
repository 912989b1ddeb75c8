"""One thread that computes, and the queue before it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from longwave.errors import first_line, is_out_of_memory
from longwave.serving.errors import ApiError, draining
from longwave.serving.jobs import Job

logger = logging.getLogger("longwave")


class Worker:
    """Runs jobs one at a time, first come first served.

    Arguments:
        run: answers a job; an error of it is the job's answer.
        places: jobs that may wait.
    """

    def __init__(self, run: Callable[[Job], None], places: int) -> None:
        self.run, self.places = run, places
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.open = True  # whether there may be new jobs
        self.ended = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.work, name="longwave-generate", daemon=True)

    @property
    def idle(self) -> bool:
        with self.changed:
            return self.running is None and not self.waiting

    def check(self, count: int) -> None:
        """Refuse what there would be no place for.

        Raises:
            ApiError: 503 while the server shuts down, 429 where the queue is full, 400 for more than it ever holds.
        """
        if not self.open:
            raise draining()
        if count > self.places:
            raise ApiError(400, f"{count} prompts are more than the {self.places} that may wait. Send fewer at once.")
        if len(self.waiting) + count > self.places:
            raise ApiError(
                429, f"the queue is full: {len(self.waiting)} prompts wait, of at most {self.places}. Ask again later."
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put all of the jobs into the queue, or none; see `check`."""
        with self.changed:
            self.check(len(jobs))
            self.waiting.extend(jobs)
            self.changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody wants the answers any more: a job that waits leaves, and one that runs ends with its next token."""
        with self.changed:
            for job in jobs:
                job.cancelled = True
            self.waiting = deque(job for job in self.waiting if not job.cancelled)

    def refuse(self, error: ApiError) -> None:
        """End all jobs with an error."""
        with self.changed:
            jobs = [*self.waiting, *([] if self.running is None else [self.running])]
            for job in jobs:
                job.send(error)
        self.cancel(jobs)

    def stop(self, seconds: float) -> bool:
        """End the thread after the job that runs. Returns whether it has ended in that time."""
        with self.changed:
            self.ended = True
            self.changed.notify()
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.ended)
                if self.ended:
                    return
                job = self.running = self.waiting.popleft()
            try:
                self.run(job)
            except Exception as error:
                job.send(explained(error, job))
            finally:
                with self.changed:
                    self.running = None


def explained(error: Exception, job: Job) -> ApiError:
    """What a client hears of an error while its job ran. The log hears what it was."""
    task = job.task
    if is_out_of_memory(error):
        return ApiError(
            500,
            f"the server's memory does not suffice for {len(task.ids)} + {task.most} tokens. Ask for fewer.",
            code="out_of_memory",
        )
    logger.warning("a request failed (%s: %s).", type(error).__name__, first_line(error))
    return ApiError(500, f"the request failed in the server ({type(error).__name__}). Its log says more.")
