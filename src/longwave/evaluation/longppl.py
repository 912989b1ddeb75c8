"""LongPPL: perplexity over the key tokens of long texts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from longwave.data.prompts import check_ids
from longwave.evaluation.keytokens import Choice, Evaluator, Reader, check_fast
from longwave.evaluation.loss import Scorer
from longwave.evaluation.statistics import Z95, mean_nll
from longwave.evaluation.windows import Windows, plan
from longwave.extensions.reach import check_lengths, fixed_length

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # start and end, in characters
NOTHING = (-1, -1)  # what an end-of-text token covers


@dataclass(eq=False)
class Texts:
    """Stretches of documents, as tokens of a stream and as text.

    Arguments:
        tokenizer: that made the stream.
        documents: with one column, `text`.
        tokens: all of them as one stream, see `longwave.data.tokens.stream_and_starts`.
        starts: where each document starts in it.
    """

    tokenizer: PreTrainedTokenizerBase
    documents: Dataset
    tokens: Tensor
    starts: Sequence[int]
    _offsets: tuple[int, list[Span]] = field(default=(-1, []), init=False, repr=False)

    def __post_init__(self) -> None:
        check_fast(self.tokenizer)

    def plan(self, lengths: Sequence[int], windows: int | None) -> list[Windows]:
        """The first n tokens of stretches as long as the longest n, which do not overlap: the same for every n."""
        sizes = [end - start for start, end in pairwise([*self.starts, len(self.tokens)])]
        longest = max(lengths)
        places = [
            start + longest * number
            for start, size in zip(self.starts, sizes, strict=True)
            for number in range(max(1, size // longest))
        ]
        return plan("truncate", len(self.tokens), lengths, windows=windows, targets=1, stride=1, documents=places)

    def text(self, start: int, end: int) -> tuple[str, list[Span]]:
        """The text of tokens start <= i < end of the stream, and the characters of it that each token covers."""
        number = bisect_right(self.starts, start) - 1
        if self._offsets[0] != number:
            self._offsets = number, self._read(number)
        first = self.starts[number]
        found = self._offsets[1][start - first : end - first]
        begin, stop = found[0][0], max(stop for _, stop in found)
        text = self.documents[number]["text"][begin:stop]
        return text, [(a - begin, b - begin) if b >= 0 else NOTHING for a, b in found]

    def _read(self, number: int) -> list[Span]:
        text = self.documents[number]["text"]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [*encoded["offset_mapping"], NOTHING]


@dataclass(frozen=True)
class KeyLoss:
    """What was measured at one length.

    Arguments:
        length: tokens of a text.
        factor: t the texts ran at, None for a model that is not extended.
        ends: exclusive end of each text in the token stream.
        nll, tokens: sum of -ln p over the key tokens of each text in nats, and how many these are.
        all_nll: mean of -ln p over all tokens of all texts.
    """

    length: int
    factor: float | None
    ends: tuple[int, ...]
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    all_nll: float

    def to_json(self) -> dict[str, Any]:
        """One entry of `lengths` in a record, see docs/results-schema.md: texts without key tokens only counted."""
        kept = [index for index, count in enumerate(self.tokens) if count]
        ends, nll, tokens = ([values[index] for index in kept] for values in (self.ends, self.nll, self.tokens))
        mean, error = mean_nll(nll, tokens)
        alone = len(kept) < 2
        return {
            "length": self.length,
            "factor": self.factor,
            "texts": len(self.ends),
            "windows": len(kept),
            "key_tokens": sum(tokens),
            "mean_nll": mean,
            "standard_error": None if alone else error,
            "longppl": math.exp(mean),
            "interval": None if alone else [math.exp(mean - Z95 * error), math.exp(mean + Z95 * error)],
            "ppl": math.exp(self.all_nll),
            "ends": ends,
            "nll": nll,
            "tokens": tokens,
        }


def longppl(
    model: nn.Module,
    texts: Texts,
    lengths: Sequence[int],
    *,
    evaluator: Evaluator,
    choice: Choice,
    windows: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[KeyLoss]:
    """How well a model predicts the tokens of a text for which a long context matters: exp of their mean -ln p.

    The model reads n tokens in one full forward, at the t that the schedule gives them, and is scored on the key
    tokens among them. Over several texts the mean is of all their key tokens; for one it is the library's value.

    Arguments:
        model: a transformers causal LM, extended or not; put in eval mode for the while.
        lengths: in tokens, all above `choice.trunc_len`.
        windows: how many texts of each length; None for 64 or what fits, 0 for all that fit.
        progress: called after each text with the number of tokens read, those of the evaluator included.

    Raises:
        ValueError: for lengths beyond the model's maximum or the evaluator's, too little data, or texts without any
            key token.

    Source: Fang et al., What is Wrong with Perplexity for Long-context Language Modeling? (arXiv 2410.23771).
    """
    check_lengths(model, lengths)
    choice.check(lengths)
    plans = texts.plan(lengths, windows)
    check_ids(texts.tokens, model, texts.tokenizer)
    scorer = Scorer(model)
    training = model.training
    model.eval()
    try:
        return [_at_length(model, scorer, texts, each, evaluator, choice, progress) for each in plans]
    finally:
        model.train(training)


def cost(texts: Texts, lengths: Sequence[int], *, evaluator: Reader, choice: Choice, windows: int | None = None) -> int:
    """About how many tokens `longppl` reads; raises what it would for texts that the evaluator cannot read."""
    choice.check(lengths)
    plans = texts.plan(lengths, windows)
    longest = max(plans, key=lambda each: each.length)
    for end in longest.ends:
        evaluator.encode(texts.text(end - longest.length, end)[0])
    return sum(len(each.ends) * (each.length + choice.cost(each.length)) for each in plans)


def _at_length(
    model: nn.Module,
    scorer: Scorer,
    texts: Texts,
    windows: Windows,
    evaluator: Evaluator,
    choice: Choice,
    progress: Callable[[int], None] | None,
) -> KeyLoss:
    from longppl.longppl import cal_overlap

    length = windows.length
    sums, counts, total = list[float](), list[int](), 0.0
    with fixed_length(model, length) as factor:
        for end in windows.ends:
            text, spans = texts.text(end - length, end)
            # Places in the loss, one below those in the text; a first token has no loss.
            keys = [place for place in cal_overlap(spans, evaluator.key_intervals(text, choice)) if place >= 0]
            nll = scorer.nll(texts.tokens[None, end - length : end], length - 1)[0].double()
            sums.append(float(nll[keys].sum()))
            counts.append(len(keys))
            total += float(nll.sum())
            if not math.isfinite(total):
                raise ValueError(f"the loss at length {length} is not a finite number. Try --dtype float32.")
            if progress is not None:
                progress(length + choice.cost(length))
    if not any(counts):
        raise ValueError(
            f"the evaluator finds no key token in {len(counts)} texts of {length} tokens. Give more or longer texts, "
            f"or lower alpha ({choice.alpha:g}) and beta ({choice.beta:g})."
        )
    scored = len(counts) * (length - 1)
    return KeyLoss(length, factor, windows.ends, tuple(sums), tuple(counts), total / scored)
