"""LongPPL: perplexity over the key tokens of long texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longwave.evaluation.base import Cost, Evaluation, Inputs, Measured, Progress, Reading
from longwave.evaluation.choice import Choice
from longwave.evaluation.kinds import Loss
from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from torch import nn

    from longwave.evaluation.keyloss import KeyLoss
    from longwave.evaluation.keytokens import Evaluator
    from longwave.evaluation.texts import Texts


@dataclass(frozen=True)
class LongPPLSettings(Settings):
    """Which texts are read, and which of their tokens are key."""

    whose: ClassVar[str] = "longppl"

    evaluator: str = setting("", "The long-context model that chooses the key tokens: a folder, or a name on the hub.")
    windows: int | None = setting(None, "Texts of each length; default 64 or what fits, 0 for all.")
    trunc_len: int = setting(Choice.trunc_len, "Tokens of the short context; every length must exceed it.")
    sliding_window: int = setting(Choice.sliding_window, "Tokens that share the start of a short context.")
    alpha: float = setting(Choice.alpha, "The short context raises the loss of a key token by more, in nats.")
    beta: float = setting(Choice.beta, "With the whole text, ln p of a key token is above this, in nats.")

    @property
    def choice(self) -> Choice:
        """Which tokens are key."""
        return Choice(self.trunc_len, self.sliding_window, self.alpha, self.beta)


def in_words(settings: Mapping[str, Any]) -> str:
    """Who chose the key tokens, from the settings of a record."""
    return f"key tokens of evaluator {settings['evaluator_digest'][:8]}"


class LongPPLEvaluation(Evaluation[LongPPLSettings]):
    """Measure perplexity over the key tokens of long texts (LongPPL, arXiv 2410.23771).

    Key tokens are those that --evaluator, a model with a long context of its own, finds easier with the whole text
    than with a short context. A text is the start of a stretch of a document, and has as many tokens as a length
    asks for. Needs pip install 'longwave[eval]'. Writes longppl.json and longppl.png.
    """

    name = "longppl"
    summary = "how well the tokens are predicted for which an evaluator model needs a long context"
    schema = "longwave.longppl/1"
    quantity = Loss("LongPPL", "LongPPL", "longppl", "text", words=in_words)
    needs_data = True
    Settings = LongPPLSettings
    examples = (
        "longwave longppl out --data books/ --evaluator LONG_CONTEXT_MODEL --lengths 8192,16384",
        "longwave longppl MODEL --data books/ --evaluator LONG_CONTEXT_MODEL --lengths 2x,4x --trunc-len 1024",
    )

    def plan(self, inputs: Inputs, settings: LongPPLSettings) -> Cost:
        from longwave.data.prompts import check_ids
        from longwave.evaluation.keytokens import reader_of

        texts, choice, lengths = self._texts(inputs), settings.choice, inputs.lengths
        check_ids(texts.tokens, inputs.model, inputs.tokenizer)
        evaluator = reader_of(settings.evaluator)
        choice.check(lengths)
        plans = texts.plan(lengths, settings.windows)
        longest = max(plans, key=lambda each: each.length)
        for end in longest.ends:
            evaluator.encode(texts.text(end - longest.length, end)[0])  # refuses what the evaluator cannot read
        return Cost(sum(len(each.ends) * (each.length + choice.cost(each.length)) for each in plans))

    def measure(self, inputs: Inputs, settings: LongPPLSettings, progress: Progress) -> Iterable[Measured]:
        from longwave.evaluation.keytokens import evaluator_of

        weight = next(inputs.model.parameters())
        evaluator = evaluator_of(settings.evaluator, weight.dtype, weight.device)
        return longppl(
            inputs.model, self._texts(inputs), inputs.lengths, evaluator=evaluator, choice=settings.choice,
            windows=settings.windows, progress=progress,
        )  # fmt: skip

    def recorded(self, inputs: Inputs, settings: LongPPLSettings) -> dict[str, Any]:
        from longwave.evaluation.keytokens import package, reader_of

        found = {**_without_evaluator(settings), "package": package()}  # a digest is the same wherever it lies
        digest = reader_of(settings.evaluator).digest
        return {**found, "evaluator_digest": digest, "tokens": inputs.text.tokens.numel()}

    def depends(self, settings: LongPPLSettings) -> dict[str, Any]:
        from longwave.evaluation.keytokens import digest_of, package

        digest = digest_of(settings.evaluator)
        return {"package": package(), "evaluator": digest, "settings": _without_evaluator(settings)}

    @staticmethod
    def _texts(inputs: Inputs) -> Texts:
        from longwave.evaluation.texts import Texts

        given = inputs.text
        return Texts(inputs.tokenizer, given.documents, given.tokens, given.starts)


def _without_evaluator(settings: LongPPLSettings) -> dict[str, Any]:
    return {name: value for name, value in settings.as_dict().items() if name != "evaluator"}


def longppl(
    model: nn.Module,
    texts: Texts,
    lengths: Sequence[int],
    *,
    evaluator: Evaluator,
    choice: Choice,
    windows: int | None = None,
    **how: Any,
) -> list[KeyLoss]:
    """How well a model predicts the tokens of a text for which a long context matters: exp of their mean -ln p.

    The model reads n tokens in one full forward, at the t that the schedule gives them, and is scored on the key
    tokens among them. Over several texts the mean is of all their key tokens; for one it is the library's value.

    Arguments:
        model: a transformers causal LM, extended or not; put in eval mode for the while.
        texts: stretches of documents.
        lengths: in tokens, all above `choice.trunc_len`.
        evaluator: the model that chooses the key tokens.
        choice: which tokens are key.
        windows: how many texts of each length; None for 64 or what fits, 0 for all that fit.
        how: the fields of `Reading`. `progress` is called after each text with the number of tokens read, those
            of the evaluator included.

    Raises:
        ValueError: for lengths beyond the model's maximum or the evaluator's, too little data, or texts without any
            key token.

    Source: Fang et al., What is Wrong with Perplexity for Long-context Language Modeling? (arXiv 2410.23771).
    """
    from longwave.data.prompts import check_ids
    from longwave.evaluation.keyloss import Judged
    from longwave.evaluation.loss import Scorer, evaluating
    from longwave.extensions.reach import check_lengths

    check_lengths(model, lengths)
    choice.check(lengths)
    plans = texts.plan(lengths, windows)
    check_ids(texts.tokens, model, texts.tokenizer)
    judged, reading = Judged(texts, evaluator, choice), Reading(**how)
    scorer = Scorer(model, block_elements=reading.block_elements)
    with evaluating(model):
        return [judged.at_length(model, scorer, each, reading) for each in plans]
