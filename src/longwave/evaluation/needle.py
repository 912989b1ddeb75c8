"""Needle in a haystack: a fact at a known depth of real text, to be recalled at its end."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from string import Formatter
from typing import TYPE_CHECKING

from torch import nn

from longwave.evaluation.passkey import Prompts, Retrieval, Template, encode, retrieve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDLE = "The magic number of {city} is {key}."
QUESTION = "What is the magic number of {city}? The magic number of {city} is"

# Where a sentence or a paragraph ends; not behind titles and initials ("Mr. J. Smith").
SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]+["'”’)\]]*(?=\s)|(?<=\S)(?=\n\s*\n)"""
)


class Haystack:
    """A text as the filler of prompts: the needle goes between two sentences, a prompt starts with a random one.

    Arguments:
        text: longer than any context; it should not contain the needle.
        depths: how many are going to be told apart.

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

    def fill(self, room: int, depth: float, key: str) -> tuple[list[int], int]:
        """`room` tokens from the start of a sentence on, and the start of a sentence that is nearest to `depth`."""
        if len(self.ids) < room:
            raise ValueError(
                f"the haystack has {len(self.ids)} tokens, fewer than the {room} that a prompt takes. "
                "Give more text or choose shorter lengths."
            )
        last = bisect_left(self.starts, len(self.ids) - room + 1)  # sentences before it have `room` tokens behind them
        begin = self.starts[random.Random(key).randrange(last)]
        inside = [start - begin for start in self.starts if 0 <= start - begin <= room]
        return self.ids[begin : begin + room], min(inside, key=lambda place: abs(place - depth * room))


def sentences(text: str) -> list[str]:
    """The sentences of a text, joined they are the text: white space goes with the sentence behind it."""
    cuts = sorted({0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)})
    return [text[start:end] for start, end in pairwise(cuts)]


def template_of(needle: str, question: str) -> Template:
    """The template of a needle and its question, which may name a `{city}`; the answer is the needle's `{key}`.

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


def prompts_in(tokenizer: PreTrainedTokenizerBase, haystack: str, needle: str, question: str, depths: int) -> Prompts:
    """Prompts that hide the needle at so many depths of a text; a `ValueError` as in `template_of` and `Haystack`."""
    return Prompts(tokenizer, template_of(needle, question), Haystack(tokenizer, haystack, depths))


def needle(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    haystack: str,
    lengths: str | Iterable[int | str],
    *,
    trials: int = 100,
    depths: int = 10,
    needle: str = NEEDLE,
    question: str = QUESTION,
    seed: int = 0,
    original_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Retrieval:
    """Share of facts hidden in a text that greedy decoding recalls exactly, by length and depth of the fact.

    As `passkey`, with text of your own round the needle. Each trial has a random five-digit answer, one of ten
    cities and a random place of the haystack to start from; the needle goes to the sentence boundary nearest to its
    depth, and `places` of the result says where that is.

    Arguments:
        haystack: text with more tokens than the longest context.
        needle: the sentence to hide, with `{key}` for the answer and, if wanted, `{city}` for what tells it apart.
        question: the end of the prompt, up to the answer; may name the `{city}`.
        model, lengths, trials, depths, seed, original_length, progress: see `passkey`.

    Raises:
        ValueError: as `passkey`, or if the haystack is shorter than a context, or a text lacks its names.

    Source: github.com/gkamradt/LLMTest_NeedleInAHaystack, here with an answer that cannot be guessed.
    """
    return retrieve(
        model, prompts_in(tokenizer, haystack, needle, question, depths), lengths, trials=trials,
        depths=depths, seed=seed, original_length=original_length, tokens_per_batch=tokens_per_batch,
        progress=progress,
    )  # fmt: skip
