"""Benchmark samples from local files: prompts and truncation as published, scores, and a run end to end."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.evaluation.tasks.common import known
from longwave.evaluation.tasks.local import run_local
from longwave.evaluation.tasks.metrics import TASKS
from longwave.evaluation.tasks.samples import Sample, read_samples
from longwave.evaluation.tasks.truncation import truncate_middle

DEMO = Path(longwave.__file__).parent / "demo" / "model"

# task, references, labels, (answer, score) from perfect to wrong
ANSWERS: list[tuple[str, tuple[str, ...], tuple[str, ...], list[tuple[str, float]]]] = [
    *(
        (
            f"longbench_{name}",
            ("Bob Dylan", "Dylan"),
            (),
            [("bob dylan.", 1.0), ("Dylan", 1.0), ("It is Dylan of the three", 2 * 0.2 / 1.2), ("no", 0.0), ("", 0.0)],
        )
        for name in ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa")
    ),
    *(
        (f"longbench_{name}", ("the cat sat down",), (), [("the cat sat down", 1.0), ("dogs ran off", 0.0), ("", 0.0)])
        for name in ("gov_report", "qmsum", "multi_news", "samsum")
    ),
    (
        "longbench_trec",
        ("Date",),
        ("Date", "Place", "Reason"),
        [("Date", 1.0), ("Date or Place", 0.5), ("Place", 0.0), ("", 0.0)],
    ),
    ("longbench_passage_count", ("46",), (), [("46", 1.0), ("46 of 47", 0.5), ("4", 0.0), ("many", 0.0)]),
    ("longbench_passage_retrieval_en", ("Paragraph 19",), (), [("Paragraph 19", 1.0), ("19 or 2", 0.5), ("2", 0.0)]),
    *(
        (f"longbench_{name}", ("x = f(1)",), (), [("# a comment\n\nx = f(1)\ny = 2", 1.0), ("", 0.0)])
        for name in ("lcc", "repobench-p")
    ),
    (
        "longbench_v2",
        ("C",),
        (),
        [("**The correct answer is (C)**", 1.0), ("The correct answer is C.", 1.0), ("C", 0.0), ("(A)", 0.0)],
    ),
    (
        "loogle_shortdep_qa",
        ("in the province",),
        (),
        [("He was born in the province", 1.0), ("in the city", 2 / 3), ("elsewhere", 0.0), ("", 0.0), (" . ", 0.0)],
    ),
    ("bamboo_paperqa", ("B",), (), [("B. Because", 1.0), (" b", 1.0), ("A", 0.0), ("The answer is B", 0.0), ("", 0.0)]),
    *(
        (f"ruler_{name}", ("e514", "77C2"), (), [("E514, 77c2", 1.0), ("it is e514", 0.5), ("e51", 0.0), ("", 0.0)])
        for name in ("niah", "vt", "cwe", "fwe")
    ),
    ("ruler_qa", ("e514", "77C2"), (), [("E514, 77c2", 1.0), ("it is e514", 1.0), ("e51", 0.0), ("", 0.0)]),
    ("passkey", ("72498",), (), [(" 72498.\n", 1.0), ("724981", 0.0), ("1 72498", 0.0), ("", 0.0)]),
]


def test_every_task_has_answers_below() -> None:
    assert {task for task, *_ in ANSWERS} == set(TASKS)


@pytest.mark.parametrize(("task", "references", "labels", "answers"), ANSWERS, ids=[task for task, *_ in ANSWERS])
def test_scores_of_perfect_partial_and_wrong_answers(
    task: str, references: tuple[str, ...], labels: tuple[str, ...], answers: list[tuple[str, float]]
) -> None:
    try:
        score = TASKS[task].prepare()
    except ValueError as error:
        pytest.skip(str(error))
    for answer, expected in answers:
        assert score(answer, Sample(task, "", references, labels)) == pytest.approx(expected, abs=1e-6), answer


def test_ruler_scores_as_in_lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'longwave[eval]'")
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    score, references = TASKS["ruler_niah"].prepare(), ("e514", "77C2")
    for answer in ("E514\x03 77c2", "e5\t14", "77C2\n", "none"):
        expected = string_match_all(postprocess_pred([answer]), [list(references)])
        assert score(answer, Sample("ruler_niah", "", references)) == expected


HIDDEN = "hidden within the following text. Make sure to memorize it. I will quiz you about the"
VT = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\nVAR A = 1\nQuestion: Find"
QA = "Answer the question based on the given documents. Only give me the answer.\n\nDocument 1: A.\n\nQuestion: Who?"
CWE = "Below is a numbered list of words. In these words, some appear more often than others. 1. a 2. b Question: What?"
FWE = "Read the following coded text and track the frequency of each coded word. Find the three. aa bb\nQuestion: What?"


@pytest.mark.parametrize(
    ("task", "text", "prefix", "end", "new_tokens"),
    [
        ("ruler_niah", f"A special magic uuid is {HIDDEN} uuid.\nWhat?", " The special magic uuid is", None, 128),
        ("ruler_niah", f"Some special magic uuids are {HIDDEN} uuids. What", "", "", 128),
        ("ruler_vt", VT, " Answer: they are: ", None, 30),
        ("ruler_vt", VT, "Answer: they are:", " Answer: they are:", 30),  # as lm-eval has it, stripped
        ("ruler_vt", VT + " Answer: they are:", " Answer: they are:", "", 30),  # there already
        ("ruler_cwe", f"<|user|>\n{CWE}<|assistant|>\n", "Answer: The top 10 words are:", None, 120),
        ("ruler_fwe", FWE, " Answer: the three words are:", None, 50),
        ("ruler_qa", QA, " Answer:", None, 32),
    ],
)
@pytest.mark.parametrize("field", ["answer_prefix", "gen_prefix"])
def test_a_row_of_ruler(
    tmp_path: Path, task: str, text: str, prefix: str, end: str | None, new_tokens: int, field: str
) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_text(json.dumps({"index": 0, "input": text, "outputs": ["a", "b"], "length": 9, field: prefix}))
    (sample,) = read_samples(path)
    assert sample == Sample(task, text + (prefix if end is None else end), ("a", "b"))
    assert TASKS[task].new_tokens == new_tokens


def words(text: str) -> list[int]:
    """A tokenizer of one token for each letter, and one (0) in front of a text."""
    return [0, *map(ord, text)]


def text(ids: list[int]) -> str:
    return "".join(chr(i) for i in ids if i)


def test_middle_truncation_is_longbench_s() -> None:
    """pred.py: half = int(max_length / 2); decode(prompt[:half]) + decode(prompt[-half:])."""
    assert truncate_middle("abcdefgh", words, text, 9) == "abcdefgh"  # 8 letters and the token in front
    assert truncate_middle("abcdefgh", words, text, 8) == "abc" + "efgh"
    assert truncate_middle("abcdefgh", words, text, 7) == "ab" + "fgh"
    assert truncate_middle("abcdefgh", words, text, 2) == "h"
    with pytest.raises(ValueError, match="1 tokens are too few for a prompt of 9"):
        truncate_middle("abcdefgh", words, text, 1)


@pytest.mark.parametrize("room", [64, 511, 900])
def test_middle_truncation_with_a_real_tokenizer(room: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    prompt = "Read this. " + " ".join(f"Line {i} of the tale." for i in range(300)) + " What was it?"
    ids = tokenizer.encode(prompt)
    cut = truncate_middle(prompt, tokenizer.encode, tokenizer.decode, room)
    assert cut == tokenizer.decode(ids[: room // 2]) + tokenizer.decode(ids[-(room // 2) :])
    assert len(tokenizer.encode(cut)) <= room


def test_text_that_has_more_tokens_once_cut_is_cut_further() -> None:
    def pairs(text: str) -> list[int]:
        """Two letters a token; what stands alone, or around a seam, is a token each."""
        return [ord(a) * 1000 + ord(b) if a == b else ord(a) for a, b in zip(text[::2], text[1::2] + " ", strict=False)]

    def grown(text: str) -> list[int]:
        return pairs(text) + [1] * (len(text) < 16)  # a shorter text is read with one token more

    def decode(ids: list[int]) -> str:
        return "".join(chr(i // 1000) * 2 for i in ids if i > 1)

    whole = "aabbccddeeffgghh"
    assert len(grown(whole)) == 8
    cut = truncate_middle(whole, grown, decode, 6)
    assert cut == "aabb" + "gghh"
    assert len(grown(cut)) <= 6


def test_what_the_published_samples_become(shared: Path) -> None:
    samples = read_samples(shared / "data" / "eval")
    counts = Counter(sample.task for sample in samples)
    absent = {
        "longbench_narrativeqa",
        "ruler_vt",
        "ruler_cwe",
        "ruler_fwe",
        "ruler_qa",
    }  # there are no samples of these
    assert set(counts) == set(TASKS) - absent
    assert (counts["longbench_trec"], counts["ruler_niah"], counts["passkey"], counts["longbench_v2"]) == (4, 20, 4, 10)
    assert all(sample.prompt and all(sample.answers) for sample in samples)
    first = {sample.task: sample for sample in reversed(samples)}
    assert first["longbench_trec"].answers[0] in first["longbench_trec"].classes
    assert first["passkey"].prompt.endswith("What is the pass key? The pass key is ")
    assert first["passkey"].answers == ("72498",)
    assert first["bamboo_paperqa"].prompt.endswith("(either A, B, C, or D)): ")
    assert "\nOptions: A. Making V&L model pre-trained.\tB. " in first["bamboo_paperqa"].prompt
    assert '\n\nFormat your response as follows: "The correct answer is (insert answer here)".' in (
        first["longbench_v2"].prompt
    )
    assert first["loogle_shortdep_qa"].prompt.endswith("?\nAnswer: ")
    perfect = {"longbench_v2": "The correct answer is ({})"}
    for task, sample in first.items():
        try:
            score = TASKS[task].prepare()
        except ValueError:
            continue
        answer = perfect.get(task, "{}").format(sample.answers[0])
        if task not in ("longbench_lcc", "longbench_repobench-p"):  # of which only the first line of code counts
            assert score(answer, sample) == pytest.approx(1, abs=1e-6), task


ROWS: dict[str, dict[str, Any]] = {
    "ruler": {
        "index": 0,
        "input": f"A special magic uuid is {HIDDEN} uuid. " + "A needle: 77c2. " * 30 + "What is it?",
        "answer_prefix": " The needle is",
        "outputs": ["77c2"],
        "length": 9,
    },
    "passkey": {"input": "The pass key is 12345.\n" + "Grass.\n" * 20, "target": "12345", "passkey_position": 0},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, row in ROWS.items():
        # a line separator and a control character inside a string end no line
        odd = {**row, "note": "a\u2028b"}
        lines = [json.dumps(odd, ensure_ascii=False).replace('"note": "a', '"note": "\x0ba')] * 3
        (tmp_path / f"{name}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    return tmp_path


def test_a_run_end_to_end(folder: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = longwave.extend(llama, "ntk", max_factor=4).train()
    seen: list[str] = []
    found = run_local(model, tokenizer, folder, limit=2, progress=seen.append)
    assert model.training
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    passkey, ruler = found["results"]
    assert seen == ["passkey"] * 2 + ["ruler_niah"] * 2
    assert (ruler["task"], ruler["metric"], ruler["samples"]) == ("ruler_niah", "string_match_all", 2)
    assert (ruler["prompt_tokens"], ruler["truncated"]) == ([128, 128], 2)  # 256 tokens but for 128 of the answer
    assert (passkey["prompt_tokens"], passkey["truncated"]) == ([201, 201], 0)
    assert ruler["value"] == sum(ruler["values"]) / 2
    assert ruler["stderr"] == 0.0
    assert set(found["data"]) == {str(folder / "passkey.jsonl"), str(folder / "ruler.jsonl")}
    assert found["settings"]["extension"] == {
        "method": "ntk", "schedule": "continuous", "options": {"slope": 2.0}, "max_factor": 4, "log_n": 0.0,
        "policy": "fit", "factor": None,
    }  # fmt: skip
    ids = torch.tensor([tokenizer.encode(read_samples(folder / "passkey.jsonl")[0].prompt)])
    with torch.no_grad():
        whole = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert passkey["outputs"][0] == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_model_that_answers_right_scores_one(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A model whose weights make each byte of "7c2" follow the one before: the whole way to a score, not only zeros."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(256))
        following = dict(pairwise(tokenizer.encode("s 7c2 ")))  # "... is" goes on as " 7c2 7c2 7c2"
        for byte, after in following.items():
            model.lm_head.weight[after, byte] = 1
    rows = [json.dumps({**ROWS["ruler"], "outputs": ["7c2"]})]
    (folder / "only.jsonl").write_text(rows[0] + "\n", "utf-8")
    (row,) = run_local(model, tokenizer, folder / "only.jsonl")["results"]
    assert row["outputs"][0].startswith(" 7c2 7c2")
    assert row["value"] == 1
    assert row["stderr"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tasks": ["rular_niah"]}, "unknown task 'rular_niah'. Did you mean ruler_niah"),
        ({"tasks": ["longbench_v2"]}, "no samples of longbench_v2; it has passkey, ruler_niah"),
        ({"max_length": 128}, "leaves no room for a prompt beside 128 tokens"),
        ({"max_length": 300}, "beyond the model's maximum of 256"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"tasks": []}, "no tasks given. Name one of those that .* has: passkey, ruler_niah"),
    ],
)
def test_what_cannot_run(
    folder: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any], complaint: str
) -> None:
    model = longwave.extend(llama, "ntk", max_factor=4)
    with pytest.raises(ValueError, match=complaint):
        run_local(model, tokenizer, folder, **arguments)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: JSONDecodeError"),
        ("[1]", "line 2: ValueError: no benchmark known by the fields of a non-object"),
        ('{"text": "a"}', "line 2: ValueError: no benchmark known by the fields text"),
        ('{"input": "a", "qa_pairs": "[{"}', "line 2: SyntaxError"),
        (
            '{"input": "a", "outputs": ["b"]}',
            "line 2: ValueError: the input has no instruction of a RULER task. Known: ",
        ),
        (json.dumps({**ROWS["ruler"], "outputs": None}), "line 2: TypeError"),
        (json.dumps({**ROWS["ruler"], "outputs": []}), "line 2: ValueError: expected one reference answer or more"),
        (json.dumps({**ROWS["passkey"], "target": 12345}), r"line 2: .* as text, got \[12345\]"),
        ('{"task": "trec", "prompt": " ", "answers": ["b"]}', "line 2: ValueError: the prompt is not a text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(ROWS["ruler"]) + "\n" + line, "utf-8")
    with pytest.raises(ValueError, match=complaint):
        read_samples(path)


def test_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.jsonl"):
        with pytest.raises(ValueError, match="no samples at"):
            read_samples(path)
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_samples(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", '{"input": "Text.", "qa_pairs": []}\n'])
def test_files_without_a_sample(folder: Path, text: str) -> None:
    """Also one among others: a benchmark that lacks a file has another score."""
    path = folder / "empty.jsonl"
    path.write_text(text)
    for where in (path, folder):
        with pytest.raises(ValueError, match=r"samples .*empty\.jsonl holds no sample. Replace the file"):
            read_samples(where)


def test_names_of_tasks() -> None:
    assert known(["b*", "a"], ["a", "ba", "bb"]) == ["ba", "bb", "a"]
    with pytest.raises(ValueError, match=r"unknown task 'q'. Available: a, b, \.\.\."):
        known(["q"], ["a", "b"])
