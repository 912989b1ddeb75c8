"""Prompts in which something is hidden, of an exact number of tokens, and the answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from longwave.data.prompts import opening
from longwave.evaluation.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CITIES = ("Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Quebec", "Cairo", "Dublin", "Perth", "Kyoto")


@dataclass(frozen=True)
class Trial:
    """One prompt.

    Arguments:
        ids: token ids of the prompt and, at their end, of the answer.
        answer: the number of tokens of the answer.
        key: what the answer holds.
        depth: where the needle should be: 0 is the start of the filler, 1 its end.
        place: the depth that the needle has.
    """

    ids: tuple[int, ...]
    answer: int
    key: str
    depth: float
    place: float


class Filler(Protocol):
    """What lies round the needle."""

    def fill(self, room: int, depth: float, key: str) -> tuple[list[int], int]:
        """`room` token ids, and the number of them that stand before the needle; the same for the same key."""
        ...


class Repeated:
    """A text that is repeated and cut at any token: the needle can have every depth, in a short window, too."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def fill(self, room: int, depth: float, key: str) -> tuple[list[int], int]:
        """See `Filler`."""
        return (self.ids * (room // len(self.ids) + 1))[:room], round(depth * room)


class Prompts:
    """Builds trials of an exact number of tokens, so that prompts of one length form a batch.

    The pieces are tokenised one by one, as after a line break, and joined: intro, filler, needle, filler, question.
    Needle, question and answer may name the `{key}`, and the `{city}` that belongs to it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, filler: Filler | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.intro = opening(tokenizer) + self._encode(template.intro)
        self.filler = filler or Repeated(self._encode(template.filler))

    def trial(self, length: int, key: str, depth: float) -> Trial:
        """A prompt that has `length` tokens with its answer, and its needle at `depth` of the filler."""
        names = {"key": key, "city": CITIES[int(key) % len(CITIES)]}
        asked = self.template.question.format(**names)
        needle, question = self._encode(self.template.needle.format(**names)), self._encode(asked)
        # In context, for tokenizers that treat a leading space of their input specially (SentencePiece).
        answer = self._encode(self.template.answer.format(**names), before=asked)
        room = length - len(self.intro) - len(needle) - len(question) - len(answer)
        if room < 0:
            raise ValueError(
                f"a prompt needs {length - room} tokens, more than the length {length}. Give longer lengths."
            )
        filler, cut = self.filler.fill(room, depth, key)
        ids = [*self.intro, *filler[:cut], *needle, *filler[cut:], *question, *answer]
        return Trial(tuple(ids), len(answer), key, depth, cut / room if room else depth)

    def trials(self, length: int, count: int, depths: int, seed: int) -> list[Trial]:
        """`count` trials with random keys, spread evenly over `depths` depths from 0 to 1."""
        if count < 1 or depths < 1:
            raise ValueError(f"trials and depths must be at least 1, got {count} and {depths}.")
        draw = random.Random(f"{seed}/{length}")
        depths = min(depths, count)  # or the end of the text would never be asked for
        places = [i / (depths - 1) if depths > 1 else 0.5 for i in range(depths)]
        return [self.trial(length, f"{draw.randrange(10**5):05d}", places[i % depths]) for i in range(count)]

    def _encode(self, text: str, before: str = "\n") -> list[int]:
        return encode(self.tokenizer, [text], before)[0]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], before: str) -> list[list[int]]:
    """Token ids of each text where it follows `before`; the ids of `before` are left out."""

    def plain(texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    (head,) = plain([before])
    wholes = plain([before + text for text in texts])
    return [
        whole[len(head) :] if whole[: len(head)] == head else plain([text])[0]
        for text, whole in zip(texts, wholes, strict=True)
    ]
