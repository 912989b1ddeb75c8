"""Runs whose processes share each row are runs of one process: draws, losses, gradients, results, and going on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import exact, same_result
from launching import Launch
from safetensors.torch import load_file

import longwave
from longwave.extensions.handle import extension
from longwave.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = ("--steps", "3", "--max-grad-norm", "0")  # DeepSpeed clips by one norm: without clipping all are comparable
DRAWN = ("step", "tokens", "factors", "positions")
TWO = Launch("ddp", sharing=2)


@pytest.fixture
def base(llama, tokenizer, tmp_path) -> Path:
    """The random Llama in a folder, with weights that look at some tokens more than at others."""
    pytest.importorskip("deepspeed")
    for parameter in llama.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def texts(tmp_path) -> Path:
    """Documents of many lengths, so that rows and shards have different numbers of labels."""
    path = tmp_path / "texts.jsonl"
    documents = ["".join(f"{n} sheep and {n + k} goats. " for n in range(1 + 7 * k % 5)) for k in range(300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return path


def rows(folder: Path, *names: str) -> list[list[Any]]:
    return [[row[name] for name in names] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("engine", "log_n"), [("ddp", "0"), ("ddp", "1"), ("fsdp2", "1"), ("zero2", "1"), ("zero3", "0")]
)
def test_two_processes_that_share_rows_are_one(base, texts, tmp_path, engine, log_n):
    more = *STEPS, "--log-n", log_n
    alone = Launch("one", 1, watched=tmp_path / "alone.pt", more=more).run(base, texts, tmp_path / "alone")
    launch = replace(TWO, engine=engine, by_environment=engine == "zero2", watched=tmp_path / "both.pt", more=more)
    both = launch.run(base, texts, tmp_path / "both")
    assert rows(both, *DRAWN) == rows(alone, *DRAWN)
    for mine, theirs in zip(rows(both, "loss"), rows(alone, "loss"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    one, two = (torch.load(tmp_path / name) for name in ("alone.pt", "both.pt"))
    assert two["theta"][0] == one["theta"][0] == rows(both, "factors")[0][0][0] > 1  # not the t of the first shard
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    assert one["gradients"].keys() == two["gradients"].keys() and largest > 0
    for name, gradient in one["gradients"].items():
        assert float((gradient - two["gradients"][name]).abs().max()) <= 1e-5 * largest, name
    results = longwave.load(alone), longwave.load(both)
    for (name, mine), theirs in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5), name
    assert extension(results[1]).is_trained
    records = [json.loads((folder / "training.json").read_text("utf-8"))["result"] for folder in (alone, both)]
    assert records[0]["trained_length"] == records[1]["trained_length"] and records[0]["tokens"] == records[1]["tokens"]


def test_two_groups_of_two_train_scalars_and_a_lora(base, texts, tmp_path):
    """The default method: each process has the scalars of its heads; a step has a micro-batch for each group."""
    more = *STEPS, "--method", "two-band", "--train-length", "128", "--loss-blocks", "on"
    alone = Launch("one", 1, more=more).run(base, texts, tmp_path / "alone")
    checkpointing = *more, "--gradient-checkpointing"
    four = Launch("ddp", processes=4, sharing=2, more=checkpointing).run(base, texts, tmp_path / "four")
    assert rows(four, *DRAWN) == rows(alone, *DRAWN)
    for mine, theirs in zip(rows(four, "loss"), rows(alone, "loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)
    for name in ("longwave.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(alone / name), load_file(four / name)
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    longwave.load(four)


def test_a_resumed_run_is_the_uninterrupted_one(base, texts, tmp_path):
    """Bit for bit by processes that share rows; one process alone goes on with the same draws."""
    more = "--steps", "6", "--save-every", "3", "--keep-checkpoints"
    whole = replace(TWO, more=more).run(base, texts, tmp_path / "whole")
    record = json.loads((whole / "training.json").read_text("utf-8"))
    for launch in (TWO, Launch("one", 1)):
        broken = shutil.copytree(whole, tmp_path / launch.engine)  # as a kill after step 3 leaves it
        (broken / "training.json").write_text(json.dumps(record | {"status": "running"}))
        shutil.rmtree(broken / "checkpoints" / "checkpoint-6")
        replace(launch, more=(*more, "--resume")).run(base, texts, broken)
        if launch is TWO:
            assert exact(broken / "metrics.jsonl") == exact(whole / "metrics.jsonl")
            same_result(whole, broken)
        assert rows(broken, *DRAWN) == rows(whole, *DRAWN)
        for mine, theirs in zip(rows(broken, "loss"), rows(whole, "loss"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
