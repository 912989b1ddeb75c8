"""longwave in lm-evaluation-harness: every request at a t of its own length, and scores that are the harness's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.extensions.handle import rotaries

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'longwave[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from longwave.evaluation.harness import LongwaveLM
from longwave.evaluation.tasks.bridge import run_tasks

DEMO = Path(longwave.__file__).parent / "demo" / "model"
HARNESS = Path(sys.modules["lm_eval"].__file__ or "").parent / "tasks"
PAIRS = [
    ("A long context," * 12, " and its end"),
    ("Short", " one"),
    ("Of middling length, that is beyond sixty-four bytes, and so in need of t > 1.", " yes"),
    ("Of middling length, that is beyond sixty-four bytes, and so in need of t > 1.", " no"),
    ("", "nothing before it"),
    ("A long context," * 12, " and another"),
]


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def byte_model(llama: LlamaForCausalLM, method: str = "ntk", **options: Any) -> LlamaForCausalLM:
    return longwave.extend(llama, method, max_factor=8, **options)


def own_score(model: LlamaForCausalLM, lm: LongwaveLM, context: str, continuation: str) -> float:
    """The plain definition: one forward over the one text, no harness."""
    before = lm.tok_encode(context) if context else [lm.prefix_token_id]
    after = lm.tok_encode(continuation)
    ids = torch.tensor([[*before, *after]])
    with torch.no_grad():
        logits = log_softmax(model(ids[:, :-1]).logits[0], -1)
    return float(logits[len(before) - 1 :].gather(1, ids[0, len(before) :, None]).sum())


@pytest.mark.parametrize("log_n", [0.0, 1.0])
@pytest.mark.parametrize("method", ["ntk", "yarn", "ntk@ceiling"])
def test_a_batch_scores_each_request_as_if_alone(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, method: str, log_n: float
) -> None:
    model = byte_model(llama, method, log_n=log_n)
    together = LongwaveLM(model, tokenizer=tokenizer, batch_size=4).loglikelihood(requests("loglikelihood", PAIRS))
    alone = LongwaveLM(model, tokenizer=tokenizer, batch_size=1)
    for (value, greedy), pair in zip(together, PAIRS, strict=True):
        ((expected, expected_greedy),) = alone.loglikelihood(requests("loglikelihood", [pair]))
        assert abs(value - expected) < 1e-5
        assert greedy == expected_greedy
        assert abs(value - own_score(model, alone, *pair)) < 1e-5


def test_the_stock_class_mixes_the_lengths_of_a_batch(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Why there is a class of ours: this is not a matter of rounding."""
    model = byte_model(llama)
    pairs = [PAIRS[0], PAIRS[1]]
    mixed = HFLM(model, tokenizer=tokenizer, batch_size=2, max_length=512).loglikelihood(
        requests("loglikelihood", pairs)
    )
    ours = LongwaveLM(model, tokenizer=tokenizer, batch_size=2).loglikelihood(requests("loglikelihood", pairs))
    assert abs(mixed[0][0] - ours[0][0]) < 1e-4  # the longest decides
    assert abs(mixed[1][0] - ours[1][0]) > 1e-4


def test_generation_of_a_batch_is_that_of_its_rows(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = byte_model(llama)
    asked = [(context, {"until": [], "max_gen_toks": 12}) for context, _ in PAIRS if context]
    together = LongwaveLM(model, tokenizer=tokenizer, batch_size=4).generate_until(requests("generate_until", asked))
    alone = LongwaveLM(model, tokenizer=tokenizer)
    for answer, (context, _) in zip(together, asked, strict=True):
        ids = torch.tensor([tokenizer.encode(context)])
        with torch.no_grad():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert answer == alone.tok_decode(whole[0, ids.shape[1] :])


def test_rolling_windows_reach_as_far_as_the_extension(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "a text of one hundred and more bytes, " * 4
    lm = LongwaveLM(byte_model(llama), tokenizer=tokenizer, batch_size=2)
    assert lm.max_length == 512  # and not the 64 of the config
    (value,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    ((whole, _),) = lm.loglikelihood(requests("loglikelihood", [("", text)]))
    assert abs(value - whole) < 1e-4


def test_a_fixed_factor_holds_for_every_request(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = byte_model(llama)
    lm = LongwaveLM(model, tokenizer=tokenizer, batch_size=4, factor=4)
    found = lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert rotaries(model)[0].factor == 4
    longwave.restore(model)
    longwave.extend(model, "ntk@static=4", max_factor=8)
    for (value, _), pair in zip(found, PAIRS, strict=True):
        assert abs(value - own_score(model, lm, *pair)) < 1e-5


def test_prompts_lose_their_middle(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = byte_model(llama)
    text = "BEGIN " + "x" * 600 + " END"
    ids, mask = LongwaveLM(model, tokenizer=tokenizer, truncate="middle").tok_batch_encode(
        [text, "short"], left_truncate_len=100
    )
    assert tokenizer.decode(ids[0]) == "BEGIN " + "x" * 90 + " END"
    assert mask.sum(1).tolist() == [100, 5]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"method": "yarn"}, "has its own extension"),
        ({"max_length": 513}, "beyond the model's maximum of 512"),
        ({"factor": 9}, "between 1 and max_factor"),
        ({"truncate": "right"}, "Available: left, middle"),
        ({"parallelize": True}, "has no parallelize"),
        ({"trust_remote_code": True}, "has no trust_remote_code"),
        ({"max_lenght": 9}, "Did you mean max_length"),
    ],
)
def test_arguments_that_cannot_be(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LongwaveLM(byte_model(llama), tokenizer=tokenizer, **arguments)


def test_plain_and_untrained_models(llama: LlamaForCausalLM, plain: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = LongwaveLM(str(plain), device="cpu", method="yarn@static=2", to=200)
    assert (lm.max_length, rotaries(lm.model)[0].schedule.spec) == (200, "static=2")
    assert LongwaveLM(str(plain), device="cpu").max_length == 64
    for arguments, complaint in (({"to": 200}, "give one"), ({"method": "ntk", "to": 60}, "less than the 64")):
        with pytest.raises(ValueError, match=complaint):
            LongwaveLM(str(plain), device="cpu", **arguments)
    config = json.loads((plain / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    (plain / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    recognised = longwave.load(plain)  # RoPE scaling in the config is part of the plain model
    for model in (str(plain), recognised):
        lm = LongwaveLM(model, tokenizer=tokenizer, device="cpu", method="ntk", to=200)
        assert (lm.max_length, rotaries(lm.model)[0].trajectory.rope.original_length) == (200, 64)
    with pytest.raises(ValueError, match="needs trained weights"):
        LongwaveLM(str(plain), device="cpu", method="clex")
    with pytest.raises(ValueError, match="not trained yet"):
        LongwaveLM(longwave.extend(llama, "clex", max_factor=4), tokenizer=tokenizer)


def test_a_result_folder(trained: Path) -> None:
    lm = LongwaveLM(str(trained), device="cpu", batch_size=3)
    assert lm.max_length == 256
    model, pairs = longwave.load(trained).eval(), PAIRS[:4]
    for (value, _), pair in zip(lm.loglikelihood(requests("loglikelihood", pairs)), pairs, strict=True):
        assert abs(value - own_score(model, lm, *pair)) < 1e-5


# The harness's own tasks, on local documents: only where the data comes from is replaced.

CONTEXT = "The river runs past the old mill. Nobody has lived there since the flood. The key hangs by the door. "
NEEDLES = [("1f0a", "77c2"), ("9b3d", "e514"), ("c0ff", "ee00")]
DOCUMENTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "longbench/trec.yaml": (
        "test",
        [
            {
                "context": f"Question: Where is it ?\nType: Place\n{CONTEXT * n}",
                "question": "Question: Who has lived there ?\nType:",
                "answers": ["Person"],
                "all_classes": ["Person", "Place"],
            }
            for n in (1, 4)
        ],
    ),
    "longbench/qasper.yaml": (
        "test",
        [{"context": CONTEXT * n, "question": "Where is the key?", "answers": ["by the door"]} for n in (1, 3)],
    ),
    "longbench/passage_retrieval_en.yaml": (
        "test",
        [{"context": f"Paragraph 1: {CONTEXT}", "question": "a mill", "answers": ["Paragraph 1"]}],
    ),
    "ruler/niah_multikey_3.yaml": (
        "test",
        [
            {
                "input": "Memorize it.\n"
                + "".join(f"The magic uuid for {key} is: {value}.\n" for key, value in NEEDLES) * n
                + "What is the magic uuid for 9b3d?",
                "outputs": ["e514"],
                "gen_prefix": "The magic uuid for 9b3d is",
                "max_length": 4096,
            }
            for n in (1, 6)
        ],
    ),
    "longbench2/academic_single.yaml": (
        "train",
        [
            {
                "context": CONTEXT * n,
                "question": "Where is the key?",
                "choices": ["In the mill", "By the door", "In the river", "Nowhere"],
                "answer": 1,
            }
            for n in (1, 5, 8)
        ],
    ),
}


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base model with YaRN at 8x in its config: what the harness's `hf` class can run."""
    folder = shutil.copytree(DEMO, tmp_path_factory.mktemp("hf") / "yarn-8x")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
    config["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def local_task(folder: Path, task: str) -> Path:
    """A task file that includes the harness's own and replaces the data."""
    split, rows = DOCUMENTS[task]
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = [f"include: {HARNESS / task}", f"task: local_{Path(task).stem}", "tag: null"]
    lines += ["dataset_path: json", "dataset_name: null", "custom_dataset: null"]
    lines += [f"dataset_kwargs: {{data_files: {{{split}: {data}}}}}"]
    if not task.startswith("longbench2"):
        lines += ["generation_kwargs: {max_gen_toks: 12, do_sample: false, until: []}"]  # of up to 128: for speed
    path = folder / f"local_{Path(task).stem}.yaml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.slow] if task.startswith("ruler") else []) for task in DOCUMENTS]
)
def test_the_harness_s_own_tasks_score_as_with_its_own_class(
    tmp_path: Path, stretched: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = str(local_task(tmp_path, task))
    try:
        TaskManager(include_defaults=False).load([path])
    except ImportError as error:
        pytest.skip(f"this task of lm-eval needs more: pip install 'longwave[eval]' ({str(error).splitlines()[0]})")
    model, tokenizer = longwave.load(DEMO, dtype=torch.float32), AutoTokenizer.from_pretrained(DEMO)
    longwave.extend(model, "yarn@static=8", max_factor=8, log_n=False)
    found = run_tasks(model, tokenizer, [path], batch_size=3, truncate="middle")
    json.dumps(found, allow_nan=False)
    theirs = HFLM(str(stretched), device="cpu", dtype="float32", batch_size=1)
    expected = lm_eval.simple_evaluate(
        theirs, tasks=[path], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    assert expected is not None
    name = path.rpartition("/")[2].removesuffix(".yaml")
    rows = [row for row in found["results"] if row["value"] != -1]  # RULER's lengths that no document has
    assert rows
    for row in rows:
        assert (row["task"], row["samples"]) == (name, len(DOCUMENTS[task][1]))
        assert row["value"] == pytest.approx(expected["results"][name][f"{row['metric']},{row['filter']}"], abs=1e-6)
        assert row["version"] == expected["versions"][name]
    ours = LongwaveLM(model, tokenizer=tokenizer, batch_size=3)
    for sample in expected["samples"][name]:
        prompt, settings = sample["arguments"][0][:2]
        if isinstance(settings, dict):  # a generation: the texts agree, and not only that none of them scores
            (answer,) = ours.generate_until(requests("generate_until", [(prompt, dict(settings))]))
            assert answer == sample["resps"][0][0]
    pairs = [
        (sample["arguments"][0][0], text)
        for sample in expected["samples"][name]
        for text in ("A", " by the door", " e514")
    ]
    for (a, _), (b, _) in zip(
        ours.loglikelihood(requests("loglikelihood", pairs)),
        theirs.loglikelihood(requests("loglikelihood", pairs)),
        strict=True,
    ):
        assert abs(a - b) < 1e-4 * max(1, abs(b))


def test_settings_that_do_not_fit(tmp_path: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = byte_model(llama), str(local_task(tmp_path, "longbench2/academic_single.yaml"))
    with pytest.raises(ValueError, match="no tasks given"):
        run_tasks(model, tokenizer, [])
    with pytest.raises(ValueError, match="limit must be at least 1"):
        run_tasks(model, tokenizer, [path], limit=0)
    with pytest.raises(ValueError, match="length 4096 is beyond the maximum of 512"):
        run_tasks(model, tokenizer, [path], lengths=[4096], factor=2)
    assert rotaries(model)[0].factor is None  # as before


@pytest.mark.slow  # lm-eval reads all its task files
def test_an_unknown_task(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'arc_esay'. Did you mean .*arc_easy"):
        run_tasks(byte_model(llama), tokenizer, ["arc_esay"])


@pytest.mark.slow  # so it does here
def test_the_command_line(tmp_path: Path, trained: Path) -> None:
    """lm-eval's own, with our model among its models."""
    path = local_task(tmp_path, "longbench2/academic_single.yaml")
    command = [sys.executable, "-m", "longwave.evaluation.harness", "run", "--model", "longwave"]
    command += ["--model_args", f"pretrained={trained},max_length=200", "--device", "cpu", "--batch_size", "2"]
    command += ["--tasks", str(path), "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(record.read_text("utf-8"))
    assert 0 <= found["results"]["local_academic_single"]["acc,none"] <= 1
    assert found["n-samples"]["local_academic_single"]["effective"] == 3
