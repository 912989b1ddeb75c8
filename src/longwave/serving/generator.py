"""Run a task on the model by the stock `generate`, and tell what comes as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)

from longwave.extensions.decoding import new_tokens
from longwave.extensions.dial import lock_of
from longwave.extensions.handle import find_extension
from longwave.serving.jobs import Done, Job, Task, Token
from longwave.serving.text import Answer

LEAST = -9999.0  # a log-probability of minus infinity, which JSON does not know


class Generator:
    """A model that answers one job after the other.

    Arguments:
        model: extended or not; the policy of an extended one is `fit`.
        tokenizer: the model's.
        prefill_chunk: tokens of a prompt that are read at once; None for all.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prefill_chunk: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.prefill_chunk = model, tokenizer, prefill_chunk
        ends: Any = getattr(model.generation_config, "eos_token_id", None)
        self.ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def run(self, job: Job) -> int:
        """Answer a job; it hears pieces of text, and the end. Returns the number of new tokens."""
        task, watch = job.task, Watch(job, self.tokenizer)
        arguments = task.decoding.arguments(self.tokenizer) | {
            # A generation config that asks for beams would have no stream.
            "num_beams": 1,
            "num_return_sequences": 1,
            "prefill_chunk_size": self.prefill_chunk,
            "stopping_criteria": StoppingCriteriaList([watch]),
        }
        if watch.recorder is not None:
            arguments["logits_processor"] = LogitsProcessorList([watch.recorder])
        ids = torch.tensor([task.ids], dtype=torch.long, device=self.model.device)
        set_seed(task.decoding.seed)
        with self.at(task), suppress(HungUp), before_forwards(self.model, watch.check):
            new_tokens(self.model, ids, task.most, arguments)
        if rest := watch.answer.rest():
            job.send(rest)
        ended = watch.answer.stopped or len(watch.ids) < task.most or watch.ids[-1] in self.ends
        job.send(Done("stop" if ended else "length", tuple(watch.ids), tuple(watch.tokens)))
        return len(watch.ids)

    @contextmanager
    def at(self, task: Task) -> Iterator[None]:
        """Within, the model runs at the task's t: by its length, or as the request has chosen."""
        handle = find_extension(self.model)
        if handle is None or not task.chosen:
            yield
            return
        with lock_of(handle.dial), handle.dial.held() as dial:
            dial.turn("fixed", task.factor)
            yield


class HungUp(Exception):
    """Nobody wants the answer any more."""


@contextmanager
def before_forwards(model: PreTrainedModel, check: Callable[[], None]) -> Iterator[None]:
    """Within, `check` runs before each forward; also between the chunks of a prompt, where nothing is generated."""
    hook = model.register_forward_pre_hook(lambda *given: check())
    try:
        yield
    finally:
        hook.remove()


class Watch(StoppingCriteria):
    """Sees every new token: sends its text, and ends a generation whose answer is complete or wanted no more."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase) -> None:
        task = job.task
        self.job, self.tokenizer, self.answer = job, tokenizer, Answer(tokenizer, task.stops)
        self.recorder = None if task.logprobs is None else Recorder()
        self.ids: list[int] = []
        self.tokens: list[Token] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for id in input_ids[0, len(self.job.task.ids) + len(self.ids) :].tolist():
            self.add(id)
        return torch.full(
            (len(input_ids),), self.answer.stopped or self.job.cancelled, dtype=torch.bool, device=input_ids.device
        )

    def check(self) -> None:
        """Raises:
        HungUp: once the job has been cancelled.
        """
        if self.job.cancelled:
            raise HungUp

    def add(self, id: int) -> None:
        offset = self.answer.length
        self.ids.append(id)
        if piece := self.answer.add(id):
            self.job.send(piece)
        if self.recorder is not None:
            self.tokens.append(self.token(id, offset, self.recorder.logprobs))

    def token(self, id: int, offset: int, logprobs: Tensor) -> Token:
        count = self.job.task.logprobs or 0
        values, places = logprobs.topk(min(count, len(logprobs)))
        likeliest: dict[str, float] = {}
        for place, value in zip([*places.tolist(), id], [*values.tolist(), logprobs[id].item()], strict=True):
            likeliest.setdefault(self.text(place), max(value, LEAST))  # several tokens may have one text
        return Token(self.text(id), offset, max(logprobs[id].item(), LEAST), likeliest)

    def text(self, id: int) -> str:
        return str(self.tokenizer.decode([id], clean_up_tokenization_spaces=False))


class Recorder(LogitsProcessor):
    """Keeps the log-probabilities of the next token, as they are before temperature and top_p."""

    logprobs: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logprobs = scores[0].log_softmax(-1)
        return scores
