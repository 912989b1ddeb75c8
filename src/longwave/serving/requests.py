"""The bodies of requests: which fields there are, what they may be, and which are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from longwave.serving.errors import ApiError
from longwave.settings import Settings, setting

SEEDS = 2**32 - 1  # the largest seed of numpy, which is seeded together with torch
COOLEST = 1e-8  # lower temperatures overflow float32
STOPS = 4  # texts that end an answer, as many as OpenAI takes

# Fields that change no answer of ours.
HARMLESS = {
    "user", "store", "metadata", "safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
# Fields that are taken only at a value that changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
    "logit_bias": ({},), "echo": (False,), "suffix": ("",), "top_k": (-1, 0), "min_p": (0,), "top_logprobs": (0,),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip


@dataclass(frozen=True)
class Asked(Settings):
    """What both kinds of request may ask for."""

    model: str | None = setting(None, "Name of the model.")
    max_tokens: int | None = setting(None, "Tokens of an answer at most.", least=1)
    max_completion_tokens: int | None = setting(None, "The same, by its newer name.", least=1)
    temperature: float = setting(1.0, "0 takes the most likely token every time.", least=0, most=2)
    top_p: float = setting(1.0, "Sample among the most likely tokens whose probabilities sum to this.", least=0, most=1)
    seed: int | None = setting(None, "Seed of every random draw; default another one each time.", least=0, most=SEEDS)
    stop: Sequence[str] | None = setting(None, "A text, or a list of texts, before which the answer ends.")
    stream: bool = setting(False, "Send the answer while it is generated.")
    stream_options: Mapping[str, Any] | None = setting(None, '{"include_usage": true}: tell the number of tokens.')
    rope_factor: float | None = setting(None, "The length factor t; default what the length asks for.", least=1)
    return_token_ids: bool = setting(False, "Add the token ids of prompt and answer.")

    logprobs: ClassVar[int | None] = None  # of completions alone

    def __post_init__(self) -> None:
        super().__post_init__()
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ApiError(
                400, "max_tokens and max_completion_tokens differ. Leave max_tokens out.", param="max_tokens"
            )
        if 0 < self.temperature < COOLEST:
            raise ApiError(400, f"temperature must be 0, or from {COOLEST:g} to 2.", param="temperature")
        if self.top_p == 0:
            raise ApiError(400, "top_p must be above 0 and at most 1.", param="top_p")
        if self.return_token_ids and self.stream:
            raise ApiError(
                400, "return_token_ids is not supported with stream. Leave one out.", param="return_token_ids"
            )
        self.stops, self.include_usage  # noqa: B018 (they check what they read)

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most; None if the request does not say."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which the answer ends."""
        found = [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(found, list) or len(found) > STOPS or not all(isinstance(x, str) and x for x in found):
            raise ApiError(400, f"stop must be a text, or a list of at most {STOPS} texts, none empty.", param="stop")
        return tuple(found)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        options = {} if self.stream_options is None else self.stream_options
        known = isinstance(options, dict) and set(options) <= {"include_usage"}
        if not known or not isinstance(options.get("include_usage", False), bool):
            raise ApiError(400, 'stream_options must be {"include_usage": true or false}.', param="stream_options")
        return bool(options.get("include_usage", False))


@dataclass(frozen=True)
class CompletionAsked(Asked):
    """The body of /v1/completions."""

    prompt: Sequence[Any] | None = setting(None, "A text, a list of texts, token ids, or a list of lists of token ids.")
    logprobs: int | None = setting(None, "Add log-probabilities, of so many of the likeliest tokens.", least=0, most=5)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is None:
            raise ApiError(400, "prompt is missing. Give a text.", param="prompt")
        if self.logprobs is not None and self.stream:
            raise ApiError(400, "logprobs is not supported with stream. Leave one out.", param="logprobs")


@dataclass(frozen=True)
class ChatAsked(Asked):
    """The body of /v1/chat/completions."""

    messages: Sequence[Any] | None = setting(None, "The conversation, a list of messages with role and content.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.messages is None:
            raise ApiError(400, "messages is missing. Give a list of messages.", param="messages")


Kind = TypeVar("Kind", bound=Asked)


def read(kind: type[Kind], body: Any) -> Kind:
    """A request from its JSON; null counts as left out, as with OpenAI.

    Raises:
        ApiError: naming the field that is unknown, not supported, or of a wrong type.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(body).__name__}.")
    given = {name: value for name, value in body.items() if value is not None}
    known = {item.name for item in fields(kind)}
    for name, value in given.items():
        if name in known:
            if refusal := kind.refusal(name, value):
                raise ApiError(400, f"{name}{refusal.removeprefix(name.replace('_', ' '))}", param=name)
        elif not is_harmless(name, value):
            neutral = f" other than as {NEUTRAL[name][0]!r}" if name in NEUTRAL else ""
            raise ApiError(
                400, f"{name} is not supported{neutral}. Leave it out.", code="unsupported_parameter", param=name
            )
    return kind.create(**{name: value for name, value in given.items() if name in known})


def is_harmless(name: str, value: Any) -> bool:
    """Whether a field that we do not read changes nothing."""
    if name == "logprobs":  # of a chat
        return value is False
    same = NEUTRAL.get(name, ())
    return name in HARMLESS or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in same)
