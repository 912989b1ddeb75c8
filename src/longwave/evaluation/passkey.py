"""Passkey retrieval: a five-digit key hidden at a known depth of a filler text, to be repeated at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from longwave.data.prompts import check_ids, opening
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.loss import Scorer
from longwave.evaluation.statistics import Interval, wilson
from longwave.evaluation.windows import rows_per_batch
from longwave.extensions.reach import check_lengths, fixed_length, original_length_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """The texts of a passkey prompt: intro, filler, needle, filler, question; then the expected answer."""

    needle: str
    filler: str
    question: str
    answer: str
    intro: str = ""


SHORT = Template(
    needle="The pass key is {key}. Remember it. {key} is the pass key.\n",
    filler="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n",
    question="What is the pass key? The pass key is",
    answer=" {key}",
)

# Mohtashami & Jaggi, Landmark Attention (arXiv 2305.16300), for models that follow an instruction.
LANDMARK = Template(
    intro="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n",
    needle="\nThe pass key is {key}. Remember it. {key} is the pass key.\n",
    filler="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    question="\nWhat is the pass key? The pass key is",
    answer=" {key}",
)

TEMPLATES = {"short": SHORT, "landmark": LANDMARK}
CITIES = ("Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Quebec", "Cairo", "Dublin", "Perth", "Kyoto")


@dataclass(frozen=True)
class Trial:
    """One prompt: its token ids, answer included at the end, and what was asked."""

    ids: tuple[int, ...]
    answer: int  # tokens of the answer
    key: str
    depth: float  # asked for the needle: 0 at the start of the filler, 1 at its end
    place: float  # the depth that it has


@dataclass(frozen=True)
class LengthRetrieval:
    """Outcome at one length, trial by trial: depth asked for, key found or not, depth that the needle has."""

    length: int
    factor: float | None
    depths: tuple[float, ...]
    correct: tuple[bool, ...]
    places: tuple[float, ...] = ()

    @property
    def rate(self) -> Interval:
        """Share of keys retrieved, with its 95 % Wilson interval."""
        return wilson(sum(self.correct), len(self.correct))

    def by_depth(self) -> dict[float, Interval]:
        """The same for each depth, shallowest first."""
        found: dict[float, list[bool]] = {}
        for depth, correct in sorted(zip(self.depths, self.correct, strict=True)):
            found.setdefault(depth, []).append(correct)
        return {depth: wilson(sum(hits), len(hits)) for depth, hits in found.items()}

    def to_json(self) -> dict[str, Any]:
        """One entry of `lengths` in a passkey or needle record, see docs/results-schema.md."""
        return {
            "length": self.length,
            "factor": self.factor,
            "trials": len(self.correct),
            "rate": self.rate.value,
            "interval": [self.rate.low, self.rate.high],
            "by_depth": [
                {"depth": depth, "rate": rate.value, "interval": [rate.low, rate.high]}
                for depth, rate in self.by_depth().items()
            ],
            "depths": list(self.depths),
            "correct": list(self.correct),
            "places": list(self.places),
        }


@dataclass(frozen=True)
class Retrieval:
    """Result of `passkey`: one `LengthRetrieval` for each length asked for, in that order."""

    original_length: int
    lengths: tuple[LengthRetrieval, ...]


class Filler(Protocol):
    """What lies round the needle."""

    def fill(self, room: int, depth: float, key: str) -> tuple[list[int], int]:
        """`room` token ids, and after how many of them the needle goes; the same for the same key."""
        ...


class Repeated:
    """A filler that repeats and is cut to the token, so that every depth can be had in a short window."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def fill(self, room: int, depth: float, key: str) -> tuple[list[int], int]:
        """See `Filler`."""
        return (self.ids * (room // len(self.ids) + 1))[:room], round(depth * room)


class Prompts:
    """Builds trials of an exact number of tokens, so that prompts of one length form a batch.

    The pieces are tokenised as they read after a line break and joined: intro, filler, needle, filler, question.
    They may name the `{key}` and a `{city}` that goes with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, filler: Filler | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.intro = opening(tokenizer) + self._encode(template.intro)
        self.filler = filler or Repeated(self._encode(template.filler))

    def trial(self, length: int, key: str, depth: float) -> Trial:
        """Prompt and answer of `length` tokens together, the needle after `depth` of the filler."""
        names = {"key": key, "city": CITIES[int(key) % len(CITIES)]}
        asked = self.template.question.format(**names)
        needle, question = self._encode(self.template.needle.format(**names)), self._encode(asked)
        # In context, for tokenizers that treat a leading space of their input specially (SentencePiece).
        answer = self._encode(self.template.answer.format(**names), before=asked)
        room = length - len(self.intro) - len(needle) - len(question) - len(answer)
        if room < 0:
            raise ValueError(f"a prompt needs {length - room} tokens, more than the length {length}.")
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
    """Token ids of each text as it reads after `before`, which itself is left out."""

    def plain(texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    (head,) = plain([before])
    wholes = plain([before + text for text in texts])
    return [
        whole[len(head) :] if whole[: len(head)] == head else plain([text])[0]
        for text, whole in zip(texts, wholes, strict=True)
    ]


def passkey(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lengths: str | Iterable[int | str],
    *,
    trials: int = 100,
    depths: int = 10,
    template: Template = SHORT,
    seed: int = 0,
    original_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Retrieval:
    """Share of five-digit keys that greedy decoding repeats exactly, by length and depth of the needle.

    A trial needs one forward, not one per answer token: greedy decoding emits the whole answer if and only if
    each of its tokens is the most likely one after the prompt and the *correct* answer tokens before it, for
    as long as it is right its own output is that prefix. t is fixed from prompt and answer together.

    Arguments:
        model: a transformers causal LM, extended or not; put in eval mode for the while.
        lengths: `"1x,2x,4096"` or a list; tokens of prompt and answer together.
        trials: trials for each length, dealt out over the depths in turn.
        depths: how many depths from 0 (start of the filler) to 1 (end).
        template: `SHORT` for small models and windows, `LANDMARK` for real ones.
        seed: of the keys; every method and model is asked for the same ones.
        original_length: what `1x` means, default the model's own.
        progress: called after each batch with the number of tokens read.

    Raises:
        ValueError: for bad lengths, a length below the prompt's or beyond the model's maximum.

    Source: Landmark Attention (arXiv 2305.16300), section 4.2.
    """
    return retrieve(
        model, Prompts(tokenizer, template), lengths, trials=trials, depths=depths, seed=seed,
        original_length=original_length, tokens_per_batch=tokens_per_batch, progress=progress,
    )  # fmt: skip


def retrieve(
    model: nn.Module,
    prompts: Prompts,
    lengths: str | Iterable[int | str],
    *,
    trials: int,
    depths: int,
    seed: int,
    original_length: int | None,
    tokens_per_batch: int,
    progress: Callable[[int], None] | None,
) -> Retrieval:
    """`passkey` with prompts of any kind."""
    original = original_length if original_length is not None else original_length_of(model)
    counts = parse_lengths(lengths, original)
    check_lengths(model, counts)
    asked = {length: draw(model, prompts, length, trials, depths, seed) for length in counts}
    scorer = Scorer(model)
    training = model.training
    model.eval()
    try:
        results = [_at_length(model, scorer, n, asked[n], tokens_per_batch, progress) for n in counts]
    finally:
        model.train(training)
    return Retrieval(original, tuple(results))


def draw(model: nn.Module, prompts: Prompts, length: int, trials: int, depths: int, seed: int) -> list[Trial]:
    """The trials of one length; a `ValueError` for token ids that the model has no row for."""
    found = prompts.trials(length, trials, depths, seed)
    check_ids(set[int]().union(*(trial.ids for trial in found)), model, prompts.tokenizer)
    return found


def cost(model: nn.Module, prompts: Prompts, lengths: Iterable[int], *, trials: int, depths: int, seed: int = 0) -> int:
    """Tokens that `retrieve` reads. Every prompt is made once: what cannot be asked is a `ValueError` now."""
    return sum(len(trial.ids) for length in lengths for trial in draw(model, prompts, length, trials, depths, seed))


def _at_length(
    model: nn.Module,
    scorer: Scorer,
    length: int,
    trials: list[Trial],
    tokens_per_batch: int,
    progress: Callable[[int], None] | None,
) -> LengthRetrieval:
    correct: list[bool] = []
    size = rows_per_batch(tokens_per_batch, length)
    with fixed_length(model, length) as factor:
        for first in range(0, len(trials), size):
            batch = trials[first : first + size]
            rows = torch.tensor([trial.ids for trial in batch])
            hits = scorer.hits(rows, max(trial.answer for trial in batch))
            correct += [bool(row[-trial.answer :].all()) for row, trial in zip(hits, batch, strict=True)]
            if progress is not None:
                progress(rows.numel())
    depths, places = zip(*((trial.depth, trial.place) for trial in trials), strict=True)
    return LengthRetrieval(length, factor, depths, tuple(correct), places)
