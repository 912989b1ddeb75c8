"""The text of an answer while its tokens come: whole characters alone, and nothing of a text that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what tokenizers write for bytes that make no character, perhaps none yet


class Detokenizer:
    """Token ids one by one -> pieces of text. Together they are the decoded text of all ids.

    A window of the last ids is decoded each time: many tokenizers write a token in another way where a text begins.
    A broken character at the end of its text may still change, because the bytes of one character may be several
    tokens. Such an end is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = 0  # of the window
        self.done = 0  # ids whose text has been given out
        self.sent = 0  # characters of the window's text that have been given out

    def add(self, id: int) -> str:
        """The piece of text that is certain now."""
        self.ids.append(id)
        text = self.decoded(self.start)
        certain = text.rstrip(BROKEN)
        piece, self.sent = certain[self.sent :], max(self.sent, len(certain))
        if piece and certain == text:  # the last ids that gave text stay in the window
            self.start, self.done = self.done, len(self.ids)
            self.sent = len(self.decoded(self.start))
        return piece

    def rest(self) -> str:
        """What was held back."""
        return self.decoded(self.start)[self.sent :]

    def decoded(self, start: int) -> str:
        """The text of all ids from one on. Spaces stay as they are, whatever the tokenizer's config wants cleaned."""
        return str(
            self.tokenizer.decode(self.ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


class Answer:
    """The text of an answer, which ends before the first of some texts.

    Arguments:
        tokenizer: the model's.
        stops: the texts.

    `stopped` says whether one of them has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.pieces = Detokenizer(tokenizer)
        self.stops, self.stopped = stops, False
        self.held = ""  # may be the beginning of a stop
        self.length = 0  # characters so far, those that are held included

    def add(self, id: int) -> str:
        """The text that is certain with this token; empty once the answer has stopped."""
        return "" if self.stopped else self.read(self.pieces.add(id))

    def rest(self) -> str:
        """At the end: what was held back."""
        if self.stopped:
            return ""
        piece = self.read(self.pieces.rest())
        return piece if self.stopped else piece + self.held

    def read(self, piece: str) -> str:
        self.length += len(piece)
        text = self.held + piece
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
