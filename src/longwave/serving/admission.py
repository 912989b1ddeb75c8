"""From a request to tasks: its prompts in tokens, the lengths of its answers, and the t of each."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longwave.extensions.decoding import Decoding
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import original_length_of, reach_of
from longwave.schedule import factor_of
from longwave.serving.errors import ApiError
from longwave.serving.jobs import Task
from longwave.serving.prompts import chat_prompt, prompts_of
from longwave.serving.requests import SEEDS, Asked, ChatAsked, CompletionAsked


@dataclass(frozen=True, eq=False)
class Admission:
    """What a request may ask of a model.

    Arguments:
        model: extended or not.
        tokenizer: read by one thread at a time.
        default_tokens: of an answer, where the request does not say.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    default_tokens: int

    @cached_property
    def original_length(self) -> int:
        """L, in tokens."""
        return original_length_of(self.model)

    @cached_property
    def limit(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return reach_of(self.model)

    @cached_property
    def max_factor(self) -> float:
        """The largest t."""
        handle = find_extension(self.model)
        return 1.0 if handle is None else handle.max_factor

    def tasks(self, asked: Asked) -> list[Task]:
        """A task for each prompt.

        Raises:
            ApiError: for a prompt that cannot be read or is too long, and for a t out of range.
        """
        return [self.task(asked, ids) for ids in self.prompts(asked)]

    def prompts(self, asked: Asked) -> list[list[int]]:
        if isinstance(asked, ChatAsked):
            return [chat_prompt(self.tokenizer, self.model, asked.messages)]
        assert isinstance(asked, CompletionAsked)
        return prompts_of(self.tokenizer, self.model, asked.prompt)

    def task(self, asked: Asked, ids: list[int]) -> Task:
        most = self.new_tokens(asked, len(ids))
        factor = self.factor(asked.rope_factor, len(ids) + most)
        seed = secrets.randbelow(SEEDS + 1) if asked.seed is None else asked.seed
        decoding = Decoding(temperature=asked.temperature, top_p=asked.top_p, seed=seed)
        return Task(tuple(ids), most, factor, asked.rope_factor is not None, decoding, asked.stops, asked.logprobs)

    def new_tokens(self, asked: Asked, length: int) -> int:
        """Tokens of the answer at most."""
        most = asked.most
        if length + (most or 1) <= self.limit:
            return min(self.default_tokens, self.limit - length) if most is None else most
        answer = "" if most is None else f" and {most} of answer"
        raise ApiError(
            400,
            f"{length} tokens of prompt{answer} are asked for; the model reads {self.limit}, the answer's included. "
            "Shorten the prompt or lower max_tokens.",
            code="context_length_exceeded",
            param="max_tokens" if most is not None and length < self.limit else None,
        )

    def factor(self, chosen: float | None, length: int) -> float:
        """t of a text, by its length or as the request has chosen."""
        handle = find_extension(self.model)
        least, largest = factor_of(length, self.original_length), self.max_factor
        if chosen is None:
            return 1.0 if handle is None else handle.dial.factor_for(length)
        if not least <= chosen <= largest:
            raise ApiError(
                400,
                f"rope_factor must be between {least:g} ({length} tokens) and {largest:g}, got {chosen:g}.",
                param="rope_factor",
            )
        return chosen

    def about(self) -> dict[str, Any]:
        """The length and t of the model, for /v1/models."""
        return {"original_length": self.original_length, "max_length": self.limit, "max_factor": self.max_factor}
