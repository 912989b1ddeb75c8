"""How each benchmark scores an answer: its own code where lm-eval carries it, else its own definition."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from longwave.errors import install
from longwave.evaluation.tasks.samples import Sample

Score = Callable[[str, Sample], float]


def package(name: str, needed: str) -> ModuleType:
    """A package that a score needs; a `ValueError` that says how to install it, where it is missing."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{needed} ({str(error).splitlines()[0]}). Run: {install('eval')}.") from None


def longbench(metric: str) -> Callable[[], Score]:
    """LongBench's metric as lm-eval has it, which the harness's own LongBench tasks use."""

    def prepare() -> Score:
        module = package("lm_eval.tasks.longbench.metrics", "LongBench is scored by lm-eval's code")
        found: Callable[..., dict[str, float]] = getattr(module, f"get_{metric}")

        def score(answer: str, sample: Sample) -> float:
            row = {"answers": list(sample.answers), "all_classes": list(sample.classes)}
            return float(found(row, [answer])[metric])

        return score

    return prepare


def rouge_l_recall() -> Score:
    """LooGLE's ROUGE-L: the recall, by the package `rouge` (Evaluation/automatic_metrics.py)."""
    rouge: Any = package("rouge", "LooGLE is scored by the package rouge").Rouge()

    def score(answer: str, sample: Sample) -> float:
        if not re.search(r"[^\s.]", answer):  # the package raises for a text without words
            answer = "None"
        return float(rouge.get_scores([answer], [sample.answers[0]])[0]["rouge-l"]["r"])

    return score


def bracketed_choice(answer: str, sample: Sample) -> float:
    """LongBench v2's `extract_answer`: "The correct answer is (B)", or without the brackets."""
    answer = answer.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if match := re.search(pattern, answer):
            return float(match.group(1) == sample.answers[0])
    return 0.0


def first_letter(answer: str, sample: Sample) -> float:
    """BAMBOO's `qa_accuracy`: the first character is the choice, whatever follows."""
    return float(answer.strip()[:1].upper() == sample.answers[0])


def all_found(answer: str, sample: Sample) -> float:
    """RULER's `string_match_all`: the share of the references that the answer contains, in any case."""
    return sum(contained(answer, sample)) / len(sample.answers)


def one_found(answer: str, sample: Sample) -> float:
    """RULER's `string_match_part`: whether the answer contains one of the references, in any case.

    lm-eval's function of that name takes the share of them, as `string_match_all` does: this is RULER's.
    """
    return float(any(contained(answer, sample)))


def contained(answer: str, sample: Sample) -> list[bool]:
    """For each reference, whether the answer has it, once control characters are line breaks."""
    answer = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).lower()
    return [reference.lower() in answer for reference in sample.answers]


def first_number(answer: str, sample: Sample) -> float:
    """The first number is the key, digit by digit."""
    match = re.search(r"\d+", answer)
    return float(match is not None and match.group() == sample.answers[0])


def as_is(score: Score) -> Callable[[], Score]:
    """A score that needs no preparation."""
    return lambda: score
