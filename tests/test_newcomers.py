"""What a newcomer adds is one object and one line; every part of the library then takes it up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import longwave
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
