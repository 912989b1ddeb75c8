"""A model that is being served: what the routes and the server need of it."""

from __future__ import annotations

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longwave.extensions.handle import find_extension
from longwave.extensions.policy import set_policy
from longwave.serving.admission import Admission
from longwave.serving.errors import ApiError
from longwave.serving.generator import Generator
from longwave.serving.jobs import Job, Task
from longwave.serving.metrics import Metrics
from longwave.serving.requests import Asked, read
from longwave.serving.settings import ServeSettings
from longwave.serving.worker import Worker

Kind = TypeVar("Kind", bound=Asked)


@dataclass(frozen=True, eq=False)
class Service:
    """One model behind one queue.

    Arguments:
        name: of the model, for clients.
        settings: how it is served.
        admission: what a request may ask.
        worker: computes the answers.
        metrics: what is counted.
        reader: the one thread that parses and tokenises, so that the event loop does not wait.
    """

    name: str
    settings: ServeSettings
    admission: Admission
    worker: Worker
    metrics: Metrics
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "longwave-read"))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, settings: ServeSettings
    ) -> Service:
        """A service of a loaded model; its thread runs."""
        if find_extension(model) is not None:
            set_policy(model, "fit")
        reads = copy.deepcopy(tokenizer)  # two threads at once: one reads prompts, the other writes answers
        reads.name_or_path = name  # messages to clients name no path of this machine
        admission = Admission(model, reads, settings.default_max_tokens)
        generator, metrics = Generator(model, tokenizer, settings.prefill_chunk), Metrics(admission.max_factor)

        def run(job: Job) -> None:
            metrics.generated(job.task, generator.run(job))

        worker = Worker(run, settings.queue)
        worker.thread.start()
        return cls(name, settings, admission, worker, metrics)

    def read(self, kind: type[Kind], body: bytes) -> tuple[Kind, list[Task]]:
        """A request, and what there is to generate.

        Raises:
            ApiError: if either cannot be.
        """
        asked = read(kind, parsed(body))
        if asked.model not in (None, self.name):
            raise unknown_model(asked.model, self.name)
        return asked, self.admission.tasks(asked)

    def about(self) -> dict[str, Any]:
        """The model's entry in /v1/models."""
        facts = self.admission.about()
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "longwave",
            "max_model_len": facts["max_length"],
            "longwave": facts,
        }


def parsed(body: bytes) -> Any:
    """The JSON of a body; text that is not Unicode is refused: neither a tokenizer nor an answer could hold it.

    Raises:
        ApiError: if it is none.
    """
    try:
        found = json.loads(body)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not valid JSON ({reason}).", code="invalid_json") from None
    return found


def unknown_model(name: str | None, ours: str) -> ApiError:
    return ApiError(404, f"there is no model {name!r} here. The one served is {ours!r}.", code="model_not_found")
