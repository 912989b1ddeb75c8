"""What a newcomer adds is one object and one line; every part of the library then takes it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import longwave
from longwave.checkpoints.folder import Kind, kind_of
from longwave.cli.main import main
from longwave.methods import METHODS, Method
from longwave.trajectory import Trajectory

L = 64


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


def toy(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """`longwave` with the export target of toy_exporter.py: options are made when the command is imported."""
    script = Path(__file__).with_name("toy_exporter.py")
    command = [sys.executable, "-P", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"})


def test_an_export_target(trained: Path, tmp_path: Path) -> None:
    """A class and a line in EXPORTERS; help, command, verification, model card and kind of folder follow."""
    text = toy("export", "--help").stdout
    assert "hf|gguf|ctranslate2|toy" in text and "toy: a folder in a box" in text
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
