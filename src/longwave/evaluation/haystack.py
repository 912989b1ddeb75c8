"""Text of the user's choice as a haystack, and what is hidden in it."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from string import Formatter
from typing import TYPE_CHECKING

from longwave.evaluation.templates import Template
from longwave.evaluation.trials import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where a sentence or a paragraph ends; not behind titles and initials ("Mr. J. Smith").
SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]+["'”’)\]]*(?=\s)|(?<=\S)(?=\n\s*\n)"""
)


class Haystack:
    """A text as the filler of prompts. A prompt starts with a random sentence, its needle lies between two sentences.

    Arguments:
        text: longer than any context; it should not contain the needle.
        depths: how many depths the needles will have.

    Raises:
        ValueError: for a text with fewer sentences than depths, and from `fill` for one shorter than the context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, depths: int) -> None:
        pieces = sentences(text.strip())
        if len(pieces) <= depths:
            raise ValueError(f"the haystack has {len(pieces)} sentences, too few for {depths} depths. Give more text.")
        encoded = encode(tokenizer, pieces, before=".")
        self.ids = [token for piece in encoded for token in piece]
        self.starts = [0, *accumulate(len(piece) for piece in encoded)]

    def fill(self, room: int, depths: Sequence[float], key: str) -> tuple[list[int], list[int]]:
        """`room` tokens from the start of a sentence on, and the start of a sentence near each depth in them."""
        if len(self.ids) < room:
            raise ValueError(
                f"the haystack has {len(self.ids)} tokens, fewer than the {room} that a prompt takes. "
                "Give more text or choose shorter lengths."
            )
        last = bisect_left(self.starts, len(self.ids) - room + 1)  # sentences before it have `room` tokens behind them
        begin = self.starts[random.Random(key).randrange(last)]
        inside = [start - begin for start in self.starts if 0 <= start - begin <= room]
        cuts = [min(inside, key=lambda place: abs(place - depth * room)) for depth in depths]
        return self.ids[begin : begin + room], cuts


def sentences(text: str) -> list[str]:
    """The sentences of a text. White space belongs to the sentence after it: joined, the sentences are the text."""
    cuts = sorted({0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)})
    return [text[start:end] for start, end in pairwise(cuts)]


def template_of(needle: str, question: str) -> Template:
    """The template of a needle and its question. The answer is the needle's `{key}`; both may name a `{city}`.

    Raises:
        ValueError: for a needle without `{key}`, a question with it, or other names in braces.
    """
    for what, text, names in (("needle", needle, {"key", "city"}), ("question", question, {"city"})):
        try:
            used = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"the {what} {text!r} cannot be read: {error}. Write {{{{ for a brace.") from None
        if used - names or (what == "needle" and "key" not in used):
            allowed = "{key}, and may use {city}" if what == "needle" else "{city} or nothing in braces"
            raise ValueError(f"the {what} must use {allowed}, got {text!r}.")
    return Template(needle=f" {needle}", filler="", question=f"\n\n{question}", answer=" {key}")
