"""Needle in a haystack: a fact at a known depth of real text, to be recalled at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longwave.evaluation.base import Cost, Evaluation, Inputs, Measured, Progress, split
from longwave.evaluation.kinds import Share
from longwave.evaluation.retrieval import BEFORE, MOST_KEYS, Retrieval, in_words
from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from longwave.evaluation.retrieve import Quiz

NEEDLE = "The magic number of {city} is {key}."
QUESTION = "What is the magic number of {city}? The magic number of {city} is"


@dataclass(frozen=True)
class NeedleSettings(Settings):
    """What is hidden, and where."""

    whose: ClassVar[str] = "needle"

    needle: str = setting(NEEDLE, "The sentence to hide, with {key} for its random answer.")
    question: str = setting(QUESTION, "The end of the prompt, up to the answer.")
    trials: int = setting(100, "Prompts for each length.")
    depths: int = setting(10, "Places of the needle from start to end; the prompts have them in turn.")
    keys: int = setting(
        1, "Needles in a prompt. Several name as many cities, and one is asked for.", least=1, most=MOST_KEYS
    )
    seed: int = setting(0, "Seed of every random draw.")

    def quiz(self, tokenizer: PreTrainedTokenizerBase, haystack: str) -> Quiz:
        """The prompts in a haystack.

        Raises:
            ValueError: for a needle or question without the names that it needs, or a haystack that is too short.
        """
        from longwave.evaluation.haystack import Haystack, template_of
        from longwave.evaluation.retrieve import Quiz
        from longwave.evaluation.trials import Prompts

        template = template_of(self.needle, self.question)
        prompts = Prompts(tokenizer, template, Haystack(tokenizer, haystack, max(self.depths, self.keys)), self.keys)
        return Quiz(prompts, self.trials, self.depths, self.seed)


class NeedleEvaluation(Evaluation[NeedleSettings]):
    """Measure how often a fact hidden between the sentences of a text is recalled, by length and depth.

    --data is the haystack: text with more tokens than the longest context. By default the magic number of a city
    is hidden; your own --needle and --question may name the {city}, too. Greedy decoding has to repeat the answer
    exactly. Every method gets the same prompts. --keys hides several facts, at other depths, and asks for one of them.
    Writes needle.json and needle.png, a heat map.
    """

    name = "needle"
    summary = "how often a fact hidden in the user's text is recalled, by length and depth"
    schema = "longwave.needle/1"
    quantity = Share("Needle retrieval", "needles retrieved", "rate", place="needle", mapped=True, words=in_words)
    needs_data = True
    Settings = NeedleSettings
    before = BEFORE
    examples = (
        "longwave needle MODEL --data essays/ --lengths 1x,2x,4x --methods none,ntk,yarn",
        "longwave needle out --data essays/ --lengths 4096,16384,65536 --depths 10 --trials 100",
        'longwave needle out --data essays/ --needle "The vault opens with {key}." --question "The vault opens with"',
    )

    def plan(self, inputs: Inputs, settings: NeedleSettings) -> Cost:
        return Cost(self._quiz(inputs, settings).cost(inputs.model, inputs.lengths))

    def measure(self, inputs: Inputs, settings: NeedleSettings, progress: Progress) -> Iterable[Measured]:
        from longwave.evaluation.retrieve import retrieve

        quiz = self._quiz(inputs, settings)
        return retrieve(inputs.model, quiz, inputs.lengths, inputs.reading(progress)).lengths

    @staticmethod
    def _quiz(inputs: Inputs, settings: NeedleSettings) -> Quiz:
        return settings.quiz(inputs.tokenizer, "\n\n".join(inputs.text.documents["text"]))


def needle(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    haystack: str,
    lengths: str | Iterable[int | str],
    **settings: Any,
) -> Retrieval:
    """Share of facts hidden in a text that greedy decoding recalls exactly, by length and depth of the fact.

    As `passkey`, with text of your own round the needle. Each trial has a random five-digit answer, one of ten
    cities and a random place of the haystack to start from; the needle goes to the sentence boundary nearest to its
    depth, and `places` of the result says where that is.

    Arguments:
        haystack: text with more tokens than the longest context.
        settings: those of `NeedleSettings`, by name:
            needle: the sentence to hide, with `{key}` for the answer and, if wanted, `{city}` for what tells it apart.
            question: the end of the prompt, up to the answer; may name the `{city}`, and must for several keys.
            trials, depths, keys, seed: and those of `Reading`, see `passkey`.
        model, lengths: see `passkey`.

    Raises:
        ValueError: as `passkey`, or if the haystack is shorter than a context, or a text lacks its names.

    Source: github.com/gkamradt/LLMTest_NeedleInAHaystack, here with an answer that cannot be guessed.
    """
    from longwave.evaluation.retrieve import retrieve

    asked, how = split(NeedleSettings, settings)
    return retrieve(model, asked.quiz(tokenizer, haystack), lengths, how)
