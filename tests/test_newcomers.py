"""What a newcomer adds is one object and one line; every part of the library then takes it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import longwave
from longwave.checkpoints.load import extension_of
from longwave.cli.main import main
from longwave.extensions.handle import find_extension
from longwave.methods import METHODS, Method
from longwave.methods.scaling import RopeType, Scaling, factor_in, original_length_in
from longwave.rope import Rope
from longwave.rules import POSITIVE
from longwave.schedule import Static
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
