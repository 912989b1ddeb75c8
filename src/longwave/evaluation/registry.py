"""Every evaluation, by name. To add one: a file here and a line in EVALUATIONS."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from longwave.data.prompts import check_ids
from longwave.evaluation.keytokens import Choice, digest_of, evaluator_of, package, reader_of
from longwave.evaluation.kinds import Loss, Share
from longwave.evaluation.longppl import Texts, longppl
from longwave.evaluation.longppl import cost as longppl_cost
from longwave.evaluation.needle import NEEDLE as NEEDLE_TEXT
from longwave.evaluation.needle import QUESTION, needle, prompts_in
from longwave.evaluation.passkey import TEMPLATES, Prompts, passkey
from longwave.evaluation.passkey import cost as passkey_cost
from longwave.evaluation.perplexity import check_cache, cost, perplexity
from longwave.evaluation.quantity import Quantity
from longwave.evaluation.results import LONGPPL, NEEDLE, PASSKEY, PERPLEXITY
from longwave.evaluation.windows import check_stretches, chunk_of, in_words, plan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int], None]


class Entry(Protocol):
    """What was measured at one length."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Text:
    """The user's data as a model's tokenizer reads it.

    Arguments:
        documents: with one column, `text`.
        tokens: all of them as one stream of token ids.
        starts: where each document starts in it.
    """

    documents: Dataset
    tokens: Tensor
    starts: Sequence[int]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an evaluation is given.

    Arguments:
        model: a transformers causal LM under the method to be measured; without weights where only `cost` is asked.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens.
        original_length: L.
        given: the user's data, None where an evaluation reads none.
        tokens_per_batch: how much is read at a time.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lengths: Sequence[int]
    original_length: int
    given: Text | None = None
    tokens_per_batch: int = 8192

    @property
    def text(self) -> Text:
        """The data, of which an evaluation that `needs_data` can be sure."""
        assert self.given is not None
        return self.given

    def shared(self) -> dict[str, Any]:
        """Arguments that all measuring functions take."""
        return {"original_length": self.original_length, "tokens_per_batch": self.tokens_per_batch}


@dataclass(frozen=True)
class Evaluation:
    """A named way to measure a model against its context length.

    Arguments:
        name: as in a suite.
        schema: of its records, see docs/results-schema.md.
        summary: one line for tables.
        defaults: every setting with its default.
        measure: (inputs, settings, progress) -> an entry for each length; `progress` is told tokens as they are read.
        cost: (inputs, settings) -> tokens it will read; raises `ValueError` for what cannot be measured. The model's
            parameters may be on the meta device: only their shapes count.
        quantity: what its numbers are. Tables, plots and the report follow from it.
        needs_data: True where it reads the user's text.
        recorded: (inputs, settings) -> those that a record states: what makes results comparable.
        depends: settings -> what its numbers depend on as well, in a cell's hash; raises `ValueError` for what is not
            there. An entry `settings` stands for the settings themselves.
    """

    name: str
    schema: str
    summary: str
    defaults: Mapping[str, Any]
    measure: Callable[[Inputs, Mapping[str, Any], Progress], Iterable[Entry]]
    cost: Callable[[Inputs, Mapping[str, Any]], int]
    quantity: Quantity
    needs_data: bool = False
    recorded: Callable[[Inputs, Mapping[str, Any]], dict[str, Any]] = lambda _, settings: _without(settings, "seed")
    depends: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _: {}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, `given` ones in place of defaults; a `ValueError` for an unknown one or one of another type."""
        found = dict(self.defaults)
        for name, value in given.items():
            if name not in self.defaults:
                raise ValueError(unknown(f"setting of {self.name}", name, self.defaults))
            default = self.defaults[name]
            kind = int if default is None else type(default)  # None stands for a number to be found
            allowed = (int, float) if kind is float else (kind,)
            known = type(value) in allowed and (kind is not float or math.isfinite(value))
            if not known and not (value is None and default is None):
                wanted = {int: "a whole number", float: "a finite number"}.get(kind, "text")
                raise ValueError(f"{name} of {self.name} must be {wanted}, got {value!r}.")
            found[name] = float(value) if kind is float else value
        return found


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


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _perplexity(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    text = inputs.text
    return perplexity(
        inputs.model, text.tokens, inputs.lengths, documents=text.starts, progress=progress,
        **inputs.shared(), **settings,
    ).lengths  # fmt: skip


def _perplexity_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    check_stretches(settings["by_position"], settings["protocol"], inputs.lengths)
    asked = {**_without(settings, "by_position"), "chunk": chunk_of(settings["chunk"], inputs.original_length)}
    text = inputs.text
    check_ids(text.tokens, inputs.model, inputs.tokenizer)
    if settings["protocol"] == "chunked-cache":
        check_cache(inputs.model)
    return cost(plan(tokens=text.tokens.numel(), lengths=inputs.lengths, documents=text.starts, **asked))


def _perplexity_recorded(inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_without(settings, "by_position", "chunk"), "tokens": inputs.text.tokens.numel()}
    if settings["protocol"] == "chunked-cache":
        found["chunk"] = chunk_of(settings["chunk"], inputs.original_length)
    return found


def _passkey(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    asked = {**settings, "template": TEMPLATES[settings["template"]]}
    return passkey(
        inputs.model, inputs.tokenizer, inputs.lengths, progress=progress, **inputs.shared(), **asked
    ).lengths  # fmt: skip


def _passkey_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    if settings["template"] not in TEMPLATES:
        raise ValueError(unknown("template", str(settings["template"]), TEMPLATES))
    prompts = Prompts(inputs.tokenizer, TEMPLATES[settings["template"]])
    return passkey_cost(inputs.model, prompts, inputs.lengths, **_without(settings, "template"))


def _needle(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    haystack = _haystack(inputs)
    return needle(
        inputs.model, inputs.tokenizer, haystack, inputs.lengths, progress=progress, **inputs.shared(), **settings
    ).lengths  # fmt: skip


def _needle_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    texts = {name: settings[name] for name in ("needle", "question", "depths")}
    prompts = prompts_in(inputs.tokenizer, _haystack(inputs), **texts)
    return passkey_cost(inputs.model, prompts, inputs.lengths, **_without(settings, "needle", "question"))


def _haystack(inputs: Inputs) -> str:
    return "\n\n".join(inputs.text.documents["text"])


def _longppl(inputs: Inputs, settings: Mapping[str, Any], progress: Progress) -> Iterable[Entry]:
    texts, asked = _longppl_asked(inputs, settings)
    weight = next(inputs.model.parameters())
    evaluator = evaluator_of(settings["evaluator"], weight.dtype, weight.device)
    return longppl(inputs.model, texts, inputs.lengths, evaluator=evaluator, progress=progress, **asked)


def _longppl_cost(inputs: Inputs, settings: Mapping[str, Any]) -> int:
    texts, asked = _longppl_asked(inputs, settings)
    check_ids(texts.tokens, inputs.model, inputs.tokenizer)
    return longppl_cost(texts, inputs.lengths, evaluator=reader_of(settings["evaluator"]), **asked)


def _longppl_asked(inputs: Inputs, settings: Mapping[str, Any]) -> tuple[Texts, dict[str, Any]]:
    given = inputs.text
    texts = Texts(inputs.tokenizer, given.documents, given.tokens, given.starts)
    choice = Choice(**_without(settings, "evaluator", "windows"))
    return texts, {"choice": choice, "windows": settings["windows"]}


def _longppl_recorded(inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_without(settings, "evaluator"), "package": package()}  # a digest is the same wherever it lies
    return {**found, "evaluator_digest": reader_of(settings["evaluator"]).digest, "tokens": inputs.text.tokens.numel()}


def _longppl_in_words(settings: Mapping[str, Any]) -> str:
    return f"key tokens of evaluator {settings['evaluator_digest'][:8]}"


def _longppl_depends(settings: Mapping[str, Any]) -> dict[str, Any]:
    digest = digest_of(settings["evaluator"])
    return {"package": package(), "evaluator": digest, "settings": _without(settings, "evaluator")}


EVALUATIONS: dict[str, Evaluation] = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation(
            "perplexity",
            PERPLEXITY,
            "how well the next token is predicted, under a named protocol",
            {
                "protocol": "same-targets",
                "windows": None,
                "targets": 64,
                "stride": 256,
                "chunk": None,
                "by_position": 0,
            },
            _perplexity,
            _perplexity_cost,
            Loss("Perplexity", "perplexity", "ppl", words=in_words),
            needs_data=True,
            recorded=_perplexity_recorded,
        ),
        Evaluation(
            "passkey",
            PASSKEY,
            "how often a key hidden in filler text is repeated",
            {"template": "short", "trials": 100, "depths": 10, "seed": 0},
            _passkey,
            _passkey_cost,
            Share("Passkey retrieval", "passkeys retrieved", "rate", place="key"),
        ),
        Evaluation(
            "needle",
            NEEDLE,
            "how often a fact hidden in the user's text is recalled, by length and depth",
            {"needle": NEEDLE_TEXT, "question": QUESTION, "trials": 50, "depths": 5, "seed": 0},
            _needle,
            _needle_cost,
            Share("Needle retrieval", "needles retrieved", "rate", place="needle", mapped=True),
            needs_data=True,
        ),
        Evaluation(
            "longppl",
            LONGPPL,
            "how well the tokens are predicted for which an evaluator model needs a long context",
            {"evaluator": "", "windows": None, **asdict(Choice())},
            _longppl,
            _longppl_cost,
            Loss("LongPPL", "LongPPL", "longppl", "text", words=_longppl_in_words),
            needs_data=True,
            recorded=_longppl_recorded,
            depends=_longppl_depends,
        ),
    )
}
