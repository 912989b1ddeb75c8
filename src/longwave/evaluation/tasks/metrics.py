"""The tasks of the benchmarks: which score each has, and how long its answers may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longwave.evaluation.tasks.scores import (
    Score,
    all_found,
    as_is,
    bracketed_choice,
    first_letter,
    first_number,
    longbench,
    one_found,
    rouge_l_recall,
)


@dataclass(frozen=True)
class Task:
    """How a benchmark scores one of its tasks.

    Arguments:
        metric: name of the score. A score lies between 0 and 1.
        prepare: returns the function that scores an answer; a `ValueError` if a package is missing.
        new_tokens: how many tokens an answer may have.
        first_line: whether only the first line of an answer counts.
    """

    metric: str
    prepare: Callable[[], Score]
    new_tokens: int
    first_line: bool = False


F1, ROUGE, CODE = "qa_f1_score", "rouge_score", "code_sim_score"
# Lengths of answers: LongBench config/dataset2maxlen.json (and lm-eval's tasks), LooGLE config/task2maxlen.json,
# BAMBOO run_for_transformers.py, RULER constants.py, LongBench v2 pred.py; a passkey has five digits.
TASKS: dict[str, Task] = {
    **{
        f"longbench_{name}": Task(metric, longbench(metric), new_tokens, name in ("trec", "triviaqa", "samsum"))
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
    "longbench_v2": Task("accuracy", as_is(bracketed_choice), 128),
    "loogle_shortdep_qa": Task("rouge_l_recall", rouge_l_recall, 300),
    "bamboo_paperqa": Task("accuracy", as_is(first_letter), 32),
    **{
        f"ruler_{name}": Task("string_match_all", as_is(all_found), new_tokens)
        for name, new_tokens in (("niah", 128), ("vt", 30), ("cwe", 120), ("fwe", 50))
    },
    "ruler_qa": Task("string_match_part", as_is(one_found), 32),
    "passkey": Task("exact_match", as_is(first_number), 8),
}
