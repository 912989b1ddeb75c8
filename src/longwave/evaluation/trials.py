"""Prompts in which something is hidden, of an exact number of tokens, and the answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from string import Formatter
from typing import TYPE_CHECKING, Protocol

from longwave.data.prompts import opening
from longwave.evaluation.retrieval import MOST_KEYS
from longwave.evaluation.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What tells hidden things apart. A thing has the name at the place of its key's last digit: ten names of each kind.
NAMES = {
    "city": ("Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Quebec", "Cairo", "Dublin", "Perth", "Kyoto"),
    "name": ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas"),
}


@dataclass(frozen=True)
class Trial:
    """One prompt.

    Arguments:
        ids: token ids of the prompt and, at their end, of the answer.
        answer: the number of tokens of the answer.
        key: what the answer holds.
        depth: where the needle that is asked for should be: 0 is the start of the filler, 1 its end.
        place: the depth that this needle has.
    """

    ids: tuple[int, ...]
    answer: int
    key: str
    depth: float
    place: float


class Filler(Protocol):
    """What lies round the needles."""

    def fill(self, room: int, depths: Sequence[float], key: str) -> tuple[list[int], list[int]]:
        """`room` token ids, and how many of them stand before the needle of each depth; the same for the same key."""
        ...


class Repeated:
    """A text that is repeated and cut at any token: the needle can have every depth, in a short window, too."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def fill(self, room: int, depths: Sequence[float], key: str) -> tuple[list[int], list[int]]:
        """See `Filler`."""
        return (self.ids * (room // len(self.ids) + 1))[:room], [round(depth * room) for depth in depths]


class Prompts:
    """Builds trials of an exact number of tokens, so that prompts of one length form a batch.

    The pieces are tokenised one by one, as after a line break, and joined: intro, filler, needle, filler, question.
    Needle, question and answer may name the `{key}`, and the `{city}` or `{name}` that belongs to it. With several
    keys, needles of the same form lie at as many depths, and the question is about one of them.

    Arguments:
        keys: how many needles a prompt has.

    Raises:
        ValueError: for several keys that the needle or the question does not tell apart.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, filler: Filler | None = None, keys: int = 1
    ) -> None:
        _check_names(template, keys)
        self.tokenizer, self.template, self.keys = tokenizer, template, keys
        self.intro = opening(tokenizer) + self._encode(template.intro)
        self.filler = filler or Repeated(self._encode(template.filler))

    def trial(self, length: int, key: str, depth: float) -> Trial:
        """A prompt that has `length` tokens with its answer, and the needle of `key` at `depth` of the filler."""
        names = named(key)
        asked = self.template.question.format(**names)
        needles = [self._encode(self.template.needle.format(**named(each))) for each in (key, *others(key, self.keys))]
        question = self._encode(asked)
        # In context, for tokenizers that treat a leading space of their input specially (SentencePiece).
        answer = self._encode(self.template.answer.format(**names), before=asked)
        room = length - len(self.intro) - sum(map(len, needles)) - len(question) - len(answer)
        if room < 0:
            raise ValueError(
                f"a prompt needs {length - room} tokens, more than the length {length}. Give longer lengths."
            )
        filler, cuts = self.filler.fill(room, _spread(depth, self.keys), key)
        ids = [*self.intro, *_with(filler, needles, cuts), *question, *answer]
        return Trial(tuple(ids), len(answer), key, depth, cuts[0] / room if room else depth)

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


def named(key: str) -> dict[str, str]:
    """What the needle of a key and the question about it may name."""
    return {"key": key, **{kind: names[int(key) % len(names)] for kind, names in NAMES.items()}}


def others(key: str, keys: int) -> list[str]:
    """The keys beside `key` in a prompt with `keys` of them: each with a name of its own, the same for the same key."""
    draw, found = random.Random(f"{key}/others"), [key]
    while len(found) < keys:
        drawn = f"{draw.randrange(10**5):05d}"
        if all(int(drawn) % MOST_KEYS != int(each) % MOST_KEYS for each in found):
            found.append(drawn)
    return found[1:]


def _spread(depth: float, keys: int) -> list[float]:
    """`depth`, and those of the other keys: all equally far apart, round the end."""
    return [depth, *((depth + i / keys) % 1 for i in range(1, keys))]


def _with(filler: Sequence[int], needles: Sequence[Sequence[int]], cuts: Sequence[int]) -> list[int]:
    """The filler with each needle after so many of its tokens."""
    ids, done = list[int](), 0
    for cut, needle in sorted(zip(cuts, needles, strict=True), key=itemgetter(0)):
        ids += [*filler[done:cut], *needle]
        done = cut
    return [*ids, *filler[done:]]


def _check_names(template: Template, keys: int) -> None:
    texts = {"needle": template.needle, "question": template.question}
    used = {what: {name for _, name, _, _ in Formatter().parse(text)} for what, text in texts.items()}
    if keys > 1 and not (used["needle"] & used["question"] & NAMES.keys()):
        raise ValueError(
            f"a prompt with {keys} keys needs a needle and a question that both name the {{city}}, got "
            f"{template.needle.strip()!r} and {template.question.strip()!r}."
        )


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
