"""Prompts are read under their length factor, and it is seen whether greedy decoding would answer them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from longwave.data.prompts import check_ids
from longwave.evaluation.base import Reading
from longwave.evaluation.decoded import decoded_logits, must_decode
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.loss import Scorer, evaluating
from longwave.evaluation.retrieval import LengthRetrieval, Retrieval
from longwave.evaluation.trials import Prompts, Trial
from longwave.evaluation.windows import rows_per_batch
from longwave.extensions.reach import check_lengths, fixed_length, original_length_of


@dataclass(frozen=True)
class Quiz:
    """What is asked at every length.

    Arguments:
        prompts: they make the prompts.
        trials: the number of prompts for each length.
        depths: the number of depths that the prompts have in turn.
        seed: the seed of the keys.
    """

    prompts: Prompts
    trials: int
    depths: int
    seed: int

    def draw(self, model: nn.Module, length: int) -> list[Trial]:
        """The trials of one length; a `ValueError` for token ids that the model has no row for."""
        found = self.prompts.trials(length, self.trials, self.depths, self.seed)
        check_ids(set[int]().union(*(trial.ids for trial in found)), model, self.prompts.tokenizer)
        return found

    def cost(self, model: nn.Module, lengths: Iterable[int]) -> int:
        """The number of tokens that `retrieve` reads. Makes every prompt, so that a `ValueError` comes now."""
        return sum(len(trial.ids) for length in lengths for trial in self.draw(model, length))


def retrieve(model: nn.Module, quiz: Quiz, lengths: str | Iterable[int | str], how: Reading) -> Retrieval:
    """Share of answers that greedy decoding gives exactly, with the model in eval mode for the while."""
    original = how.original_length if how.original_length is not None else original_length_of(model)
    counts = parse_lengths(lengths, original)
    check_lengths(model, counts)
    asked = {length: quiz.draw(model, length) for length in counts}
    scorer = Scorer(model, block_elements=how.block_elements)
    with evaluating(model):
        results = [_at_length(model, scorer, length, trials, how) for length, trials in asked.items()]
    return Retrieval(original, tuple(results))


def _at_length(model: nn.Module, scorer: Scorer, length: int, trials: list[Trial], how: Reading) -> LengthRetrieval:
    correct: list[bool] = []
    decoded = must_decode(model)
    size = rows_per_batch(how.tokens_per_batch, length)
    with fixed_length(model, length) as factor:
        for first in range(0, len(trials), size):
            batch = trials[first : first + size]
            rows = torch.tensor([trial.ids for trial in batch])
            correct += _decoded(model, scorer, batch) if decoded else _in_one_forward(scorer, rows, batch)
            how.told(rows.numel())
    depths, places = zip(*((trial.depth, trial.place) for trial in trials), strict=True)
    return LengthRetrieval(length, factor, depths, tuple(correct), places, decoded)


def _in_one_forward(scorer: Scorer, rows: torch.Tensor, batch: list[Trial]) -> list[bool]:
    """Greedy decoding gives an answer if each of its tokens is the most likely one after the right ones before it."""
    hits = scorer.hits(rows, max(trial.answer for trial in batch))
    return [bool(row[-trial.answer :].all()) for row, trial in zip(hits, batch, strict=True)]


def _decoded(model: nn.Module, scorer: Scorer, batch: list[Trial]) -> list[bool]:
    """The same, with each token of the answer read by itself: prompts whose answers are equally long run together."""
    found: dict[int, bool] = {}
    for answer in {trial.answer for trial in batch}:
        members = [index for index, trial in enumerate(batch) if trial.answer == answer]
        ids = torch.tensor([batch[index].ids for index in members], device=scorer.device)
        logits = decoded_logits(model, ids[:, :-1], ids.shape[1] - answer)
        hits = (logits.argmax(-1) == ids[:, -answer:].to(logits.device)).all(1)
        found |= dict(zip(members, hits.tolist(), strict=True))
    return [found[index] for index in range(len(batch))]
