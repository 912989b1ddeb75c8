"""Commands on a folder that was saved with an attention method, and training through the bands."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

import longwave
from longwave.cli.main import main
from longwave.evaluation.results import read


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400)))
    return path


@pytest.fixture
def saved(plain: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    model = longwave.extend(longwave.load(plain), "two-band", max_factor=4, window=12)
    return longwave.save(model, tmp_path / "saved", tokenizer=tokenizer)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_saved_folder_is_measured_under_its_own_method(saved: Path, text: Path, tmp_path: Path) -> None:
    """Not under the scaling method below it alone."""
    common = ("--data", text, "--windows", 4, "--targets", 16)
    assert run("perplexity", saved, *common, "-o", tmp_path / "ppl") == 0
    (row,) = read(tmp_path / "ppl" / "perplexity.json")["rows"]
    assert (row["label"], row["method"], row["own"]) == ("two-band", "two-band", True)
    assert [entry["length"] for entry in row["lengths"]] == [64, 128, 256]
    model = longwave.load(saved)
    assert longwave.extension(model).attention.options()["window"] == 12
    assert run("passkey", saved, "--lengths", "4x", "--trials", 2, "-o", tmp_path / "passkey") == 0
    assert [row["label"] for row in read(tmp_path / "passkey" / "passkey.json")["rows"]] == ["two-band"]


@pytest.mark.slow
def test_a_saved_folder_in_suites(saved: Path, plain: Path, text: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("- perplexity: {windows: 4, targets: 16}\n- passkey: {trials: 2, depths: 2}\n  lengths: 4x\n")
    common = ("--data", text, "--lengths", "1x,2x", "--suite", suite)
    assert run("evaluate", saved, *common, "-o", tmp_path / "one") == 0
    assert [row["label"] for row in read(tmp_path / "one" / "perplexity.json")["rows"]] == ["two-band"]
    assert "Distances · two-band" in (tmp_path / "one" / "report.html").read_text()
    models = (f"own={saved}", f"base={plain}", "--methods", "two-band")
    assert run("compare", *models, *common, "-o", tmp_path / "two") == 0
    rows = read(tmp_path / "two" / "perplexity.json")["rows"]
    assert [(row["label"], row["method"], row["own"]) for row in rows] == [
        ("own", "two-band", True), ("base", "two-band", False),
    ]  # fmt: skip


def test_a_saved_folder_answers(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("generate", saved, "--prompt", "abc " * 30, "--max-new-tokens", 4) == 0
    assert "t 1.938" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("hello " * 9 + "\n" + "and " * 10 + "\n"))
    assert run("chat", saved, "--max-new-tokens", 4) == 0
    assert "· t 2 ·" in capsys.readouterr().err


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **others):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("method", ["two-band", "clex+two-band", "yarn+dca"])
def test_trained_through_the_bands_resumed_is_uninterrupted(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: Path, tmp_path: Path, method: str
) -> None:
    how = {"train_length": 48, "max_factor": 4, "batch_size": 2, "steps": 8, "save_every": 2, "lr": 1e-3,
           "progress": False, "tokenizer": tokenizer, "method": method, "lora": "none", "head_scalars": False,
           "long_share": 0.0, "least_factor": 1.0}  # fmt: skip
    start = copy.deepcopy(llama)
    whole = longwave.train(copy.deepcopy(start), [text], tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        longwave.train(copy.deepcopy(start), [text], tmp_path / "broken", callbacks=[Stop()], **how)
    broken = longwave.train(copy.deepcopy(start), [text], tmp_path / "broken", resume=True, **how)
    for name in ("longwave.safetensors", "model/model.safetensors"):
        mine, theirs = load_file(whole / name), load_file(broken / name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    model = longwave.load(whole)
    assert longwave.extension(model).spec == method
    if method.startswith("clex"):
        assert longwave.extension(model).is_trained
        assert run("perplexity", whole, "--data", text, "--windows", 2, "--targets", 8, "-o", tmp_path / "ppl") == 0
        assert [row["label"] for row in read(tmp_path / "ppl" / "perplexity.json")["rows"]] == [method]
