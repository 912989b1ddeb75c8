"""The JSON of answers: text completions and chats, whole or in chunks, as OpenAI's clients read them."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from longwave.serving.jobs import Done, Task
from longwave.serving.requests import Asked, ChatAsked, CompletionAsked


@dataclass(frozen=True)
class Answered:
    """An answer and what it answers."""

    task: Task
    text: str
    done: Done


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """How a request is answered.

    Arguments:
        asked: the request.
        tasks: its prompts.
        model: the name of the model.
    """

    asked: Asked
    tasks: Sequence[Task]
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    unique: str = field(default_factory=lambda: uuid.uuid4().hex)

    prefix: ClassVar[str]  # of ids
    kind: ClassVar[str]  # OpenAI's `object` of a whole answer
    kind_of_chunk: ClassVar[str]

    @abstractmethod
    def choice(self, answered: Answered) -> dict[str, Any]:
        """An answer."""

    @abstractmethod
    def part(self, text: str) -> dict[str, Any]:
        """A piece of an answer."""

    def first(self) -> dict[str, Any] | None:
        """What a stream says of an answer before its text."""
        return None

    @property
    def factor(self) -> float:
        """The largest t of the request."""
        return max(task.factor for task in self.tasks)

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        factors = [task.factor for task in self.tasks]
        return {
            "id": f"{self.prefix}-{self.unique}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "longwave": {"factor": self.factor, "factors": factors},
        }

    def whole(self, answers: Sequence[Answered]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for index, answered in enumerate(answers):
            choice = {"index": index, "finish_reason": answered.done.reason, **self.choice(answered)}
            if self.asked.return_token_ids:
                choice |= {"prompt_token_ids": answered.task.ids, "token_ids": answered.done.ids}
            choices.append(choice)
        new = sum(len(answered.done.ids) for answered in answers)
        return self.frame(self.kind, choices) | {"usage": self.usage(new)}

    def chunk(self, index: int, part: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """A chunk of a stream."""
        made = self.frame(self.kind_of_chunk, [{"index": index, "finish_reason": reason, "logprobs": None, **part}])
        return made | ({"usage": None} if self.asked.include_usage else {})

    def last(self, new: int) -> dict[str, Any]:
        """The chunk with the number of tokens, for a request that wants it."""
        return self.frame(self.kind_of_chunk, []) | {"usage": self.usage(new)}

    def usage(self, new: int) -> dict[str, int]:
        prompt = sum(len(task.ids) for task in self.tasks)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


class CompletionForm(Form):
    """Answers of /v1/completions."""

    prefix, kind, kind_of_chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, answered: Answered) -> dict[str, Any]:
        tokens = answered.done.tokens
        logprobs = {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [token.likeliest for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }
        return {"text": answered.text, "logprobs": None if self.asked.logprobs is None else logprobs}

    def part(self, text: str) -> dict[str, Any]:
        return {"text": text}


class ChatForm(Form):
    """Answers of /v1/chat/completions."""

    prefix, kind, kind_of_chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, answered: Answered) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answered.text, "refusal": None}, "logprobs": None}

    def part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def first(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}


FORMS: dict[type[Asked], type[Form]] = {CompletionAsked: CompletionForm, ChatAsked: ChatForm}
