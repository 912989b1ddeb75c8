"""How each benchmark scores an answer: its own code where lm-eval carries it, else its own definition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from longwave.evaluation.tasks.samples import Sample

Score = Callable[[str, Sample], float]


@dataclass(frozen=True)
class Task:
    """What a benchmark does with one of its tasks.

    Arguments:
        metric: name of the score, which lies between 0 and 1.
        prepare: returns the function that scores an answer; raises where a package is missing.
        new_tokens: how many tokens an answer may have.
        first_line: whether only the first line of an answer counts.
    """

    metric: str
    prepare: Callable[[], Score]
    new_tokens: int
    first_line: bool = False


def _package(name: str, needed: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{needed} ({str(error).splitlines()[0]}). Run: pip install 'longwave[eval]'.") from None


def _longbench(metric: str) -> Callable[[], Score]:
    """LongBench's metric as lm-eval has it, which the harness's own LongBench tasks use."""

    def prepare() -> Score:
        module = _package("lm_eval.tasks.longbench.metrics", "LongBench is scored by lm-eval's code")
        found: Callable[..., dict[str, float]] = getattr(module, f"get_{metric}")

        def score(answer: str, sample: Sample) -> float:
            row = {"answers": list(sample.answers), "all_classes": list(sample.classes)}
            return float(found(row, [answer])[metric])

        return score

    return prepare


def _rouge_l_recall() -> Score:
    """LooGLE's ROUGE-L: the recall, by the package `rouge` (Evaluation/automatic_metrics.py)."""
    rouge: Any = _package("rouge", "LooGLE is scored by the package rouge").Rouge()

    def score(answer: str, sample: Sample) -> float:
        if not re.search(r"[^\s.]", answer):  # the package raises for a text without words
            answer = "None"
        return float(rouge.get_scores([answer], [sample.answers[0]])[0]["rouge-l"]["r"])

    return score


def _bracketed_choice(answer: str, sample: Sample) -> float:
    """LongBench v2's `extract_answer`: "The correct answer is (B)", or without the brackets."""
    answer = answer.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if match := re.search(pattern, answer):
            return float(match.group(1) == sample.answers[0])
    return 0.0


def _first_letter(answer: str, sample: Sample) -> float:
    """BAMBOO's `qa_accuracy`: the first character is the choice, whatever follows."""
    return float(answer.strip()[:1].upper() == sample.answers[0])


def _all_found(answer: str, sample: Sample) -> float:
    """RULER's `string_match_all`: the share of the references that the answer contains, in any case."""
    return sum(_contained(answer, sample)) / len(sample.answers)


def _one_found(answer: str, sample: Sample) -> float:
    """RULER's `string_match_part`: whether the answer contains one of the references, in any case.

    lm-eval's function of that name takes the share of them, as `string_match_all` does: this is RULER's.
    """
    return float(any(_contained(answer, sample)))


def _contained(answer: str, sample: Sample) -> list[bool]:
    """For each reference, whether the answer has it, once control characters are line breaks."""
    answer = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).lower()
    return [reference.lower() in answer for reference in sample.answers]


def _first_number(answer: str, sample: Sample) -> float:
    """The first number is the key, digit by digit."""
    match = re.search(r"\d+", answer)
    return float(match is not None and match.group() == sample.answers[0])


def _as_is(score: Score) -> Callable[[], Score]:
    return lambda: score


F1, ROUGE, CODE = "qa_f1_score", "rouge_score", "code_sim_score"
# Lengths of answers: LongBench config/dataset2maxlen.json (and lm-eval's tasks), LooGLE config/task2maxlen.json,
# BAMBOO run_for_transformers.py, RULER constants.py, LongBench v2 pred.py; a passkey has five digits.
TASKS: dict[str, Task] = {
    **{
        f"longbench_{name}": Task(metric, _longbench(metric), new_tokens, name in ("trec", "triviaqa", "samsum"))
        for name, metric, new_tokens in (
            ("narrativeqa", F1, 128),
            ("qasper", F1, 128),
            ("multifieldqa_en", F1, 64),
            ("hotpotqa", F1, 32),
            ("2wikimqa", F1, 32),
            ("musique", F1, 32),
            ("gov_report", ROUGE, 512),
            ("qmsum", ROUGE, 512),
            ("multi_news", ROUGE, 512),
            ("trec", "classification_score", 64),
            ("triviaqa", F1, 32),
            ("samsum", ROUGE, 128),
            ("passage_count", "count_score", 32),
            ("passage_retrieval_en", "retrieval_score", 32),
            ("lcc", CODE, 64),
            ("repobench-p", CODE, 64),
        )
    },
    "longbench_v2": Task("accuracy", _as_is(_bracketed_choice), 128),
    "loogle_shortdep_qa": Task("rouge_l_recall", _rouge_l_recall, 300),
    "bamboo_paperqa": Task("accuracy", _as_is(_first_letter), 32),
    **{
        f"ruler_{name}": Task("string_match_all", _as_is(_all_found), new_tokens)
        for name, new_tokens in (("niah", 128), ("vt", 30), ("cwe", 120), ("fwe", 50))
    },
    "ruler_qa": Task("string_match_part", _as_is(_one_found), 32),
    "passkey": Task("exact_match", _as_is(_first_number), 8),
}
