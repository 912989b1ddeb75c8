"""A prompt that waits for its answer, and what its request hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from longwave.extensions.decoding import Decoding
from longwave.serving.errors import ApiError


@dataclass(frozen=True)
class Task:
    """What is to be generated.

    Arguments:
        ids: the prompt.
        most: tokens of the answer at most.
        factor: t that it runs at.
        chosen: whether the request has chosen t, and not the length.
        decoding: how tokens are chosen.
        stops: texts before which the answer ends.
        logprobs: log-probabilities of so many of the likeliest tokens; None for none at all.
    """

    ids: tuple[int, ...]
    most: int
    factor: float
    chosen: bool
    decoding: Decoding
    stops: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Arguments:
        text: of the token alone.
        offset: characters of the answer before it.
        logprob: of the token, natural logarithm.
        likeliest: the same of the likeliest tokens, this one included.
    """

    text: str
    offset: int
    logprob: float
    likeliest: dict[str, float]


@dataclass(frozen=True)
class Done:
    """The end of an answer.

    Arguments:
        reason: `stop`, or `length` where `max_tokens` ended it.
        ids: all new tokens, the end token included.
        tokens: the same with log-probabilities; empty if nobody asked.
    """

    reason: str
    ids: tuple[int, ...]
    tokens: tuple[Token, ...] = ()


Event = str | Done | ApiError  # a piece of text, the end, or why there is none


@dataclass(eq=False)
class Job:
    """A task, and the way back to the event loop that waits for its answer."""

    task: Task
    loop: asyncio.AbstractEventLoop
    cancelled: bool = False
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def send(self, event: Event) -> None:
        """From any thread. Nobody listens to a cancelled job."""
        if not self.cancelled:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def answer(self) -> AsyncIterator[str | Done]:
        """Pieces of text, and the end.

        Raises:
            ApiError: if there is no answer.
        """
        while True:
            event = await self.events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, Done):
                return
