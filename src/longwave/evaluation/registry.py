"""Every evaluation, by name. To add one: a file here and a line in EVALUATIONS."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from longwave.evaluation.passkey import TEMPLATES, passkey
from longwave.evaluation.perplexity import cost, perplexity
from longwave.evaluation.results import PASSKEY, PERPLEXITY
from longwave.evaluation.windows import plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int], None]


class Entry(Protocol):
    """What was measured at one length."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Inputs:
    """What an evaluation is given.

    Arguments:
        model: a transformers causal LM under the method to be measured.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens.
        original_length: L.
        tokens: the data as one stream of token ids, None where no data was given.
        tokens_per_batch: how much is read at a time.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lengths: Sequence[int]
    original_length: int
    tokens: Tensor | None = None
    tokens_per_batch: int = 8192


@dataclass(frozen=True)
class Evaluation:
    """A named way to measure a model against its context length.

    Arguments:
        name: as in a suite.
        schema: of its records, see docs/results-schema.md.
        summary: one line for tables.
        defaults: every setting with its default.
        measure: (inputs, settings, progress) -> an entry for each length; `progress` is told tokens as they are read.
        cost: (inputs, settings) -> tokens it will read; raises `ValueError` for what cannot be measured.
        needs_data: True where it reads the user's text.
    """

    name: str
    schema: str
    summary: str
    defaults: Mapping[str, Any]
    measure: Callable[[Inputs, Mapping[str, Any], Progress], Iterable[Entry]]
    cost: Callable[[Inputs, Mapping[str, Any]], int]
    needs_data: bool = False

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, `given` ones in place of defaults; an unknown one is a `ValueError`."""
        for name in given:
            if name not in self.defaults:
                raise ValueError(unknown(f"setting of {self.name}", name, self.defaults))
        return {**self.defaults, **given}


def unknown(what: str, name: str, available: Iterable[str]) -> str:
    """The message for a name that is none of those available."""
    near = difflib.get_close_matches(name.lower(), list(available), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}. {hint}Available: {', '.join(available)}."


def get_evaluation(name: str) -> Evaluation:
    """Look an evaluation up; an unknown name is a `ValueError` that offers the nearest one."""
    if name not in EVALUATIONS:
        raise ValueError(unknown("evaluation", name, EVALUATIONS))
    return EVALUATIONS[name]


def _tokens(inputs: Inputs) -> Tensor:
    if inputs.tokens is None:
        raise ValueError("perplexity needs text. Pass --data PATH.")
    return inputs.tokens


def _perplexity(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    return perplexity(
        inputs.model, _tokens(inputs), inputs.lengths, original_length=inputs.original_length,
        tokens_per_batch=inputs.tokens_per_batch, progress=progress, **settings,
    ).lengths  # fmt: skip


def _perplexity_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    settings = dict(settings)
    return cost(plan(settings.pop("protocol"), _tokens(inputs).numel(), inputs.lengths, **settings))


def _passkey(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    template = TEMPLATES[settings["template"]]
    return passkey(
        inputs.model, inputs.tokenizer, inputs.lengths, original_length=inputs.original_length,
        tokens_per_batch=inputs.tokens_per_batch, progress=progress, **{**settings, "template": template},
    ).lengths  # fmt: skip


def _passkey_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    if settings["template"] not in TEMPLATES:
        raise ValueError(unknown("template", str(settings["template"]), TEMPLATES))
    return int(settings["trials"]) * sum(inputs.lengths)


EVALUATIONS: dict[str, Evaluation] = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation(
            "perplexity",
            PERPLEXITY,
            "how well the next token is predicted, under a named protocol",
            {"protocol": "same-targets", "windows": None, "targets": 64, "stride": 256},
            _perplexity,
            _perplexity_cost,
            needs_data=True,
        ),
        Evaluation(
            "passkey",
            PASSKEY,
            "how often a key hidden in filler text is repeated",
            {"template": "short", "trials": 100, "depths": 10, "seed": 0},
            _passkey,
            _passkey_cost,
        ),
    )
}
