"""The loss of a model over key tokens of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from longwave.evaluation.base import Reading
from longwave.evaluation.choice import Choice
from longwave.evaluation.keytokens import Evaluator
from longwave.evaluation.loss import Scorer
from longwave.evaluation.statistics import Z95, mean_nll
from longwave.evaluation.texts import Texts
from longwave.evaluation.windows import Windows
from longwave.extensions.reach import fixed_length


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
        """One entry of `lengths` in a record, see docs/results-schema.md. It lists the texts that have key tokens."""
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


@dataclass(frozen=True, eq=False)
class Judged:
    """Texts, and what decides which of their tokens are key.

    Arguments:
        texts: the user's texts.
        evaluator: the model that chooses the key tokens.
        choice: the rule that it chooses them by.
    """

    texts: Texts
    evaluator: Evaluator
    choice: Choice

    def at_length(self, model: nn.Module, scorer: Scorer, windows: Windows, how: Reading) -> KeyLoss:
        """The loss over the key tokens of all texts of one length; a `ValueError` if no text has a key token."""
        from longppl.longppl import cal_overlap

        length, texts = windows.length, self.texts
        sums, counts, total = list[float](), list[int](), 0.0
        with fixed_length(model, length) as factor:
            for end in windows.ends:
                text, spans = texts.text(end - length, end)
                # Places in the loss, one below those in the text; a first token has no loss.
                found = cal_overlap(spans, self.evaluator.key_intervals(text, self.choice))
                keys = [place for place in found if place >= 0]
                nll = scorer.nll(texts.tokens[None, end - length : end], length - 1)[0].double()
                sums.append(float(nll[keys].sum()))
                counts.append(len(keys))
                total += float(nll.sum())
                if not math.isfinite(total):
                    raise ValueError(f"the loss at length {length} is not a finite number. Try --dtype float32.")
                how.told(length + self.choice.cost(length))
        if not any(counts):
            raise ValueError(
                f"the evaluator finds no key token in {len(counts)} texts of {length} tokens. Give more or longer "
                f"texts, or lower alpha ({self.choice.alpha:g}) and beta ({self.choice.beta:g})."
            )
        scored = len(counts) * (length - 1)
        return KeyLoss(length, factor, windows.ends, tuple(sums), tuple(counts), total / scored)
