"""Samples of long-context benchmarks, read from their own files, with the prompts that the benchmarks build."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGBENCH_V2 = """Please read the following text and answer the question below.

<text>
{context}
</text>

What is the correct answer to this question: {question}
Choices:
(A) {choice_A}
(B) {choice_B}
(C) {choice_C}
(D) {choice_D}

Format your response as follows: "The correct answer is (insert answer here)"."""

LOOGLE = "Please answer the question based on the long texts below. \n{input}\nQuestion: {Q}\nAnswer: "

BAMBOO = (
    "You are given an article or a long dialogue, a multiple-choice question with four optional answer(marked by A, B, "
    "C, D). Please choose the best answer to the question based on the given content by responsing its corresponding "
    "letter (either A, B, C, or D). Do not provide any explanation.\n\nArticle: ```{content}```\n\n"
    "Question: {question}\nOptions: {options}\n\nAnswer(Only give the corresponding letter (either A, B, C, or D)): "
)

# A sentence that is in every input of a task, by RULER's scripts/data/synthetic/constants.py.
RULER = (
    ("ruler_niah", "hidden within the following text. Make sure to memorize it."),
    ("ruler_vt", "variable assignment hidden in the following text."),
    ("ruler_cwe", "Below is a numbered list of words. In these words, some appear more often than others."),
    ("ruler_fwe", "Read the following coded text and track the frequency of each coded word."),
    ("ruler_qa", "Answer the question based on the given documents."),
)

PASSKEY = "{input}What is the pass key? The pass key is "


@dataclass(frozen=True)
class Sample:
    """One prompt, in full, and what is expected.

    Arguments:
        task: its name in `TASKS`.
        answers: reference answers. The best match counts; in RULER, `ruler_qa` aside, the share that is found.
        classes: all labels, of a classification.
    """

    task: str
    prompt: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()


def _longbench(row: dict[str, Any]) -> Iterator[Sample]:
    classes = row.get("all_classes") or ()
    yield Sample(f"longbench_{row['task']}", row["prompt"], _strings(row["answers"]), _strings(classes))


def _longbench_v2(row: dict[str, Any]) -> Iterator[Sample]:
    texts = {name: row[name].strip() for name in row if name in ("context", "question") or name.startswith("choice_")}
    yield Sample("longbench_v2", LONGBENCH_V2.format(**texts), (row["answer"],))


def _loogle(row: dict[str, Any]) -> Iterator[Sample]:
    pairs = row["qa_pairs"]
    for pair in ast.literal_eval(pairs) if isinstance(pairs, str) else pairs:
        yield Sample("loogle_shortdep_qa", LOOGLE.format(input=row["input"], Q=pair["Q"]), (pair["A"],))


def _bamboo(row: dict[str, Any]) -> Iterator[Sample]:
    prompt = BAMBOO.format(content=row["content"], question=row["question"], options="\t".join(row["options"]))
    yield Sample("bamboo_paperqa", prompt, (row["answer"],))


def _ruler(row: dict[str, Any]) -> Iterator[Sample]:
    """RULER's rows do not name their task; the instruction at the start of the input does."""
    text = row["input"]
    task = next((task for task, instruction in RULER if instruction in text), None)
    if task is None:
        raise ValueError(f"the input has no instruction of a RULER task. Known: {', '.join(task for task, _ in RULER)}")
    prefix = row.get("answer_prefix", row.get("gen_prefix")) or ""
    yield Sample(task, _begun(text, prefix), _strings(row["outputs"]))


def _begun(text: str, prefix: str) -> str:
    """A prompt that ends in the beginning of its answer.

    RULER cuts that beginning off its inputs: there it stands behind a chat template.
    """
    if text.endswith(prefix):
        return text
    apart = text[-1:].isspace() or prefix[:1].isspace()  # lm-eval strips it
    return text + ("" if apart else " ") + prefix


def _passkey(row: dict[str, Any]) -> Iterator[Sample]:
    yield Sample("passkey", PASSKEY.format(input=row["input"]), (row["target"],))


# The fields by which a file is known, and what reads its rows.
FORMATS: tuple[tuple[frozenset[str], Callable[[dict[str, Any]], Iterator[Sample]]], ...] = (
    (frozenset({"task", "prompt", "answers"}), _longbench),
    (frozenset({"context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer"}), _longbench_v2),
    (frozenset({"input", "qa_pairs"}), _loogle),
    (frozenset({"content", "question", "options", "answer"}), _bamboo),
    (frozenset({"input", "outputs"}), _ruler),
    (frozenset({"input", "target", "passkey_position"}), _passkey),
)


def sample_files(path: Path | str) -> list[Path]:
    """The file `path`, or all `.jsonl` files of the folder, sorted.

    Raises:
        ValueError: if there are none.
    """
    path = Path(path)
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise ValueError(f"no samples at {path}. Pass a .jsonl file of a benchmark, or a folder of them.")
    return files


def read_samples(path: Path | str) -> list[Sample]:
    """All samples of a file or folder. The fields of a row tell its benchmark.

    LongBench with its `prompt` filled in, LongBench v2, LooGLE's short-dependency questions, BAMBOO's multiple choice,
    RULER, and the passkey prompts of Self-Extend, all as published.

    Raises:
        ValueError: naming file and line that cannot be read, or the file without a sample.
    """
    found: list[Sample] = []
    for file in sample_files(path):
        before = len(found)
        found += _read(file)
        if len(found) == before:
            raise ValueError(f"samples {file} holds no sample. Replace the file or leave it out.")
    return found


def _read(file: Path) -> Iterator[Sample]:
    try:
        # Lines end with "\n" only, and strings may hold control characters: the benchmarks' files are like that.
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, strict=False)
            fields = frozenset(row) if isinstance(row, dict) else frozenset()
            read = next((read for needed, read in FORMATS if needed <= fields), None)
            if read is None:
                raise ValueError(f"no benchmark known by the fields {', '.join(sorted(fields)) or 'of a non-object'}")
            for sample in read(row):
                _check(sample)
                yield sample
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise ValueError(f"samples {file}, line {number}: {type(error).__name__}: {error}.") from None


def _check(sample: Sample) -> None:
    """Refuse a sample without a prompt or without answers."""
    if not isinstance(sample.prompt, str) or not sample.prompt.strip():
        raise ValueError("the prompt is not a text")
    if not sample.answers or not all(isinstance(answer, str) for answer in sample.answers):
        raise ValueError(f"expected one reference answer or more, as text, got {list(sample.answers)}")


def _strings(values: Any) -> tuple[str, ...]:
    """A list of texts, or one written as a Python literal, as LongBench's tables have them."""
    found = ast.literal_eval(values) if isinstance(values, str) and values.startswith("[") else values
    return (found,) if isinstance(found, str) else tuple(str(value) for value in found)
