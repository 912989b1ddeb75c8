"""Passkey retrieval: a five-digit key hidden at a known depth of a filler text, to be repeated at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longwave.evaluation.base import Cost, Evaluation, Inputs, Measured, Progress, split
from longwave.evaluation.kinds import Share
from longwave.evaluation.retrieval import BEFORE, MOST_KEYS, Retrieval, in_words
from longwave.evaluation.templates import SHORT, TEMPLATES, Template
from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from longwave.evaluation.retrieve import Quiz


@dataclass(frozen=True)
class PasskeySettings(Settings):
    """Which prompts are made."""

    whose: ClassVar[str] = "passkey"

    template: str = setting(
        "short", "landmark: with instructions, for large models; short: without.", choices=tuple(TEMPLATES)
    )
    trials: int = setting(100, "Prompts for each length.")
    depths: int = setting(10, "Places of the key from start to end; the prompts have them in turn.")
    keys: int = setting(
        1, "Keys in a prompt. Several are those of as many people, and one is asked for.", least=1, most=MOST_KEYS
    )
    seed: int = setting(0, "Seed of every random draw.")

    def quiz(self, tokenizer: PreTrainedTokenizerBase, template: Template | None = None) -> Quiz:
        """What is asked; a `template` of one's own takes the place of the named one.

        Raises:
            ValueError: for several keys that the template does not tell apart.
        """
        from longwave.evaluation.retrieve import Quiz
        from longwave.evaluation.trials import Prompts

        if template is None:
            template = TEMPLATES[self.template] if self.keys == 1 else TEMPLATES[self.template].naming()
        prompts = Prompts(tokenizer, template, keys=self.keys)
        return Quiz(prompts, self.trials, self.depths, self.seed)


class PasskeyEvaluation(Evaluation[PasskeySettings]):
    """Measure how often a five-digit key hidden in filler text is found again.

    Greedy decoding has to repeat the key exactly. Prompt and answer together have the length asked for, and
    run at the length factor of that. Every method gets the same prompts. --keys hides several keys, at other depths,
    and asks for one of them. Writes passkey.json and passkey.png.
    """

    name = "passkey"
    summary = "how often a key hidden in filler text is repeated"
    schema = "longwave.passkey/1"
    quantity = Share("Passkey retrieval", "passkeys retrieved", "rate", place="key", words=in_words)
    Settings = PasskeySettings
    before = BEFORE
    examples = (
        "longwave passkey MODEL --lengths 1x,2x,4x --methods none,ntk,yarn",
        "longwave passkey out --lengths 1x,2x,4x,8x,16x --trials 100 --template landmark",
    )

    def plan(self, inputs: Inputs, settings: PasskeySettings) -> Cost:
        return Cost(settings.quiz(inputs.tokenizer).cost(inputs.model, inputs.lengths))

    def measure(self, inputs: Inputs, settings: PasskeySettings, progress: Progress) -> Iterable[Measured]:
        from longwave.evaluation.retrieve import retrieve

        quiz = settings.quiz(inputs.tokenizer)
        return retrieve(inputs.model, quiz, inputs.lengths, inputs.reading(progress)).lengths


def passkey(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lengths: str | Iterable[int | str],
    *,
    template: Template = SHORT,
    **settings: Any,
) -> Retrieval:
    """Share of five-digit keys that greedy decoding repeats exactly, by length and depth of the needle.

    A trial needs one forward, not one per answer token: greedy decoding emits the whole answer if and only if
    each of its tokens is the most likely one after the prompt and the *correct* answer tokens before it. (While it
    is right, its own output is that prefix.) An attention method that reads a prompt otherwise than it decodes is
    measured as it generates: the prompt in one forward, then the answer token by token. t is fixed from prompt and
    answer together.

    Arguments:
        model: a transformers causal LM, extended or not; put in eval mode for the while.
        lengths: `"1x,2x,4096"` or a list; tokens of prompt and answer together.
        template: `SHORT` (default) for small models and windows, `LANDMARK` for real ones; `template.naming()` for
            several keys.
        settings: those of `PasskeySettings`, by name:
            trials: trials for each length, default 100. They have the depths in turn.
            depths: how many depths from 0 (start of the filler) to 1 (end), default 10.
            keys: how many keys a prompt has, default 1.
            seed: of the keys, default 0; every method and model is asked for the same ones.
            And those of `Reading`:
            original_length: what `1x` means, default the model's own.
            tokens_per_batch: prompts are batched up to that many tokens, default 8,192.
            progress: called after each batch with the number of tokens read.

    Raises:
        ValueError: for bad lengths, a length below the prompt's or beyond the model's maximum.

    Source: Landmark Attention (arXiv 2305.16300), section 4.2.
    """
    from longwave.evaluation.retrieve import retrieve

    asked, how = split(PasskeySettings, settings)
    return retrieve(model, asked.quiz(tokenizer, template), lengths, how)
