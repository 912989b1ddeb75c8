"""What a newcomer adds is one object and one line; every part of the library then takes it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import longwave
from longwave.attention import ATTENTIONS
from longwave.attention.bands import Attention, Band, always, far, near, zero
from longwave.checkpoints.folder import Kind, kind_of
from longwave.checkpoints.load import extension_of
from longwave.cli import main as command_line
from longwave.cli.main import main
from longwave.evaluation.base import Cost, Evaluation, Inputs, Measured, Progress
from longwave.evaluation.kinds import Share
from longwave.evaluation.registry import EVALUATIONS
from longwave.evaluation.results import read
from longwave.evaluation.statistics import wilson
from longwave.extensions.handle import find_extension
from longwave.methods import METHODS, Method
from longwave.methods.scaling import RopeType, Scaling, factor_in, original_length_in
from longwave.rope import Rope
from longwave.rules import POSITIVE
from longwave.schedule import Static
from longwave.settings import Settings, setting
from longwave.trajectory import Trajectory

L = 64


@dataclass(frozen=True)
class LastSettings(Settings):
    """What is asked."""

    whose: ClassVar[str] = "last"
    trials: int = setting(4, "Windows of each length.", least=1)


@dataclass(frozen=True)
class LastHits:
    """Which windows of one length were continued rightly."""

    length: int
    factor: float
    correct: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        rate = wilson(sum(self.correct), len(self.correct))
        return {
            "length": self.length, "factor": self.factor, "trials": len(self.correct), "accuracy": rate.value,
            "interval": [rate.low, rate.high], "correct": list(self.correct),
        }  # fmt: skip


class LastToken(Evaluation[LastSettings]):
    """Measure how often the last token of a window is predicted."""

    name = "last"
    summary = "how often the last token of a window is predicted"
    schema = "longwave.last/1"
    quantity = Share("Last token", "last tokens predicted", "accuracy")
    needs_data = True
    Settings = LastSettings
    examples = ("longwave last MODEL --data book.txt --trials 8",)

    def plan(self, inputs: Inputs, settings: LastSettings) -> Cost:
        return Cost(settings.trials * sum(inputs.lengths))

    @torch.no_grad()
    def measure(self, inputs: Inputs, settings: LastSettings, progress: Progress) -> Iterable[Measured]:
        for length in inputs.lengths:
            hits = []
            for trial in range(settings.trials):
                ids = inputs.text.tokens[None, trial : trial + length]
                hits.append(bool(inputs.model(ids[:, :-1]).logits[0, -1].argmax() == ids[0, -1]))
                progress(length)
            yield LastHits(length, length / inputs.original_length, tuple(hits))


class Root(Trajectory):
    """z(t) = z(1) - ½ ln t: half of Position Interpolation, in logarithms."""

    name = "root"

    def log_freq(self, t: float | Tensor) -> Tensor:
        return self.log_freq_1 - self.as_factor(t).log() / 2


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "root", Method("root", Root, "half way to interpolation", "this test"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return path


@pytest.mark.usefixtures("root")
def test_a_trajectory(plain: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class with one method; rate, command, catalogue, folder, record, table and export follow."""
    model = longwave.extend(longwave.load(plain), "root", max_factor=4)
    (trajectory,) = longwave.extension(model).trajectories
    torch.testing.assert_close(trajectory.rate(3.0), torch.full_like(trajectory.log_freq_1, -1 / 6))
    again = longwave.load(longwave.save(model, tmp_path / "saved"))
    assert longwave.extension(again).method == "root"

    assert main(["methods"]) == 0
    assert "root" in capsys.readouterr().out
    for command in (
        ["perplexity", plain, "--data", text, "--lengths", "1x,2x", "--methods", "root", "--targets", "16"],
        ["export", plain, "--method", "root", "--factor", "4"],
    ):
        assert main([*map(str, command), "--output", str(tmp_path / command[0])]) == 0, command
    out = capsys.readouterr().out
    assert "root" in out
    record = json.loads((tmp_path / "perplexity" / "perplexity.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["root"]
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    ids = torch.randint(1, 256, (1, 4 * L))
    with torch.no_grad(), longwave.frozen(model, 4.0):
        assert torch.equal(native(ids).logits, model(ids).logits)


def test_a_trajectory_that_configs_express(monkeypatch: pytest.MonkeyPatch, plain: Path) -> None:
    """The method's `RopeType`: `load` recognises the scaling, and a wrong value or a missing key is refused."""

    def in_transformers(config: Any, device: Any = None, **_: Any) -> tuple[Tensor, float]:
        inv_freq, attention = ROPE_INIT_FUNCTIONS["linear"](config, device)
        factor = config.rope_parameters["factor"]
        return inv_freq * factor / (factor * config.rope_parameters["share"]) ** 0.5, attention

    def from_rope_parameters(parameters: Mapping[str, Any], rope: Rope, longest: int) -> Scaling:
        factor, original = factor_in(parameters), original_length_in(parameters)
        return Scaling(factor, original, longest, Static(factor), inv_freq=1 / rope.powers)

    rope_type = RopeType("root", from_rope_parameters, {"share": POSITIVE}, required=("factor", "share"))
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "root", in_transformers)
    monkeypatch.setitem(METHODS, "root", Method("root", Root, "half way", "this test", rope_type))
    path, section = plain / "config.json", {"rope_type": "root", "factor": 4.0, "original_max_position_embeddings": L}

    def load(**changes: Any) -> Any:
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 1e4} | section | changes}))
        return longwave.load(plain)

    assert (longwave.extension(load(share=1.0)).method, extension_of(plain)) == ("root", ("root", 4.0))
    assert find_extension(load(share=2.0)) is None  # which the method does not express
    with pytest.raises(ValueError, match=r"config\.json: rope_parameters: share is 0, it must be a number above 0"):
        load(share=0)
    with pytest.raises(ValueError, match=r"config\.json: rope_parameters: type 'root' lacks share"):
        load()


@dataclass(frozen=True)
class Flat(Attention):
    """All keys beyond `window` at one distance."""

    window: int = setting(16, "Keys fewer than so many tokens away keep their distance.", least=1, metavar="TOKENS")

    name: ClassVar[str] = "flat"
    summary: ClassVar[str] = "all far keys at one distance"
    source: ClassVar[str] = "this test"

    def bands(self, t: float) -> tuple[Band, ...]:
        return near(self.window), far(self.window, query=always(self.window), key=zero)


def test_an_attention_method(
    monkeypatch: pytest.MonkeyPatch, plain: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class and a line in ATTENTIONS; catalogue, `extend`, folder, commands, comparison and report follow."""
    monkeypatch.setitem(ATTENTIONS, "flat", Flat)
    model, ids = longwave.load(plain), torch.randint(1, 256, (1, 3 * L))
    longwave.extend(model, "yarn+flat", max_factor=4, window=20)
    longwave.restore(model)
    longwave.extend(model, "flat", max_factor=4, window=20)
    again = longwave.load(longwave.save(model, tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert extension_of(tmp_path / "saved") == ("flat", 4.0)

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0, arguments
        return " ".join(capsys.readouterr().out.split())

    assert "flat" in run("methods") and Flat.summary in run("methods", "--json")
    common = ("--data", text, "--lengths", "1x,2x")
    run("perplexity", plain, *common, "--methods", "flat,ntk+flat", "--targets", "16", "-o", tmp_path / "perplexity")
    rows = read(tmp_path / "perplexity" / "perplexity.json")["rows"]
    assert [row["label"] for row in rows] == ["flat", "ntk+flat"]
    suite = tmp_path / "suite.yaml"
    suite.write_text("- perplexity: {windows: 4, targets: 16}\n")
    run("compare", plain, *common, "--methods", "none,flat", "--suite", suite, "-o", tmp_path / "compared")
    assert [row["label"] for row in read(tmp_path / "compared" / "perplexity.json")["rows"]] == ["none", "flat"]
    run("report", "--model", plain, "--methods", "none,flat", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Distances · flat" in page and "flat at t = 16: no key is farther than 0.25 L" in page


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATIONS, "last", LastToken())
    monkeypatch.setattr(command_line, "app", command_line.build_app())


@pytest.mark.slow
@pytest.mark.usefixtures("last")
def test_an_evaluation(plain: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class and a line; command, help, suite, cells, record, table, plot and report follow."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0, arguments
        return " ".join(capsys.readouterr().out.split())

    assert "Measure how often the last token" in run("--help")
    assert all(part in run("last", "--help") for part in ("--trials", "Default 4.", "--lengths", *LastToken.examples))

    single = tmp_path / "single"
    common = ("--data", text, "--lengths", "1x,2x", "--methods", "none,ntk")
    shown = run("last", plain, *common, "--trials", 3, "-o", single)
    assert "Last token by context length" in shown and "3 trials for each length" in shown
    found = read(single / "last.json", LastToken.schema)
    assert [row["label"] for row in found["rows"]] == ["none", "ntk"] and found["settings"] == {"trials": 3}
    assert "cells" not in found and "model" not in found["rows"][0]
    assert sorted(path.name for path in single.iterdir()) == ["last.json", "last.png"]

    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text("- last: {trials: 3}\n")
    run("evaluate", plain, *common, "--suite", suite, "-o", out)
    assert [row["lengths"] for row in read(out / "last.json")["rows"]] == [row["lengths"] for row in found["rows"]]
    assert len(list((out / "cells").glob("*.json"))) == 2
    assert "Last token" in (out / "report.html").read_text()

    assert "method 64 128" in run("plot", single, "-o", tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000
    run("report", single, "-o", tmp_path / "page.html")
    assert "Share of last tokens predicted against context length" in (tmp_path / "page.html").read_text()
    for arguments, code, message in (
        (("last", plain, *common, "--trials", 0, "-o", tmp_path / "b"), 1, "trials of last must be at least 1, got 0"),
        (("last", plain, "-o", tmp_path / "b"), 2, "--data"),
        (("lest", plain), 2, "Did you mean 'last'"),
    ):
        assert main([str(argument) for argument in arguments]) == code
        assert message in capsys.readouterr().err


def toy(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """`longwave` with the export target of toy_exporter.py: options are made when the command is imported."""
    script = Path(__file__).with_name("toy_exporter.py")
    command = [sys.executable, "-P", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"})


@pytest.mark.slow
def test_an_export_target(trained: Path, tmp_path: Path) -> None:
    """A class and a line in EXPORTERS; help, command, verification, model card and kind of folder follow."""
    text = toy("export", "--help").stdout
    assert "One of: hf, gguf, ctranslate2, toy." in text and "toy: a folder in a box" in text
    assert "toy: whole (default), split" in text

    out = tmp_path / "out"
    done = toy("export", trained, "--target", "toy", "--factor", "2", "--quantize", "split", "--verify", "-o", out)
    assert done.returncode == 0, done.stderr
    written = sum(path.stat().st_size for path in out.rglob("*") if path.name != "longwave-export.json")
    assert f"{out}: toy, {written / 1e6:,.1f} MB, t 2, 128 tokens" in done.stdout  # files in subfolders count
    assert "note: Open the box." in done.stderr and "verified: box 1.0: 72 of 72 greedy tokens equal" in done.stdout
    card = (out / "README.md").read_text()
    assert "library_name: box-library" in card and "open out/inner" in card and "box 1.0" in card
    record = json.loads((out / "longwave-export.json").read_text())
    assert (record["target"], record["factor"]) == ("toy", 2.0) and "inner/model.safetensors" in record["files"]
    assert kind_of(out) is Kind.EXPORT
    with pytest.raises(ValueError, match="is an export for toy, which longwave does not read"):
        longwave.load(out)

    refused = toy("export", trained, "--target", "toy", "--quantize", "odd", "-o", tmp_path / "odd")
    assert refused.returncode == 1 and "toy has no quantization 'odd'. Available: whole, split." in refused.stderr
