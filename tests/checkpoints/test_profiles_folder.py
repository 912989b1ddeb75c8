"""longwave reads what `export --profiles` wrote: the model that it was made from, at the t of its profiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import longwave
from longwave.checkpoints.folder import Kind, resolve
from longwave.checkpoints.load import extension_of
from longwave.checkpoints.outline import outline
from longwave.cli.main import main
from longwave.extensions.adapter import LoRA
from longwave.serving import vllm_server
from longwave.serving.engines import has_profiles
from longwave.serving.settings import ServeSettings

DEMO = Path(longwave.__file__).parent / "demo" / "model"
T = {100: 1.0, 256: 1.0, 257: 2.0, 600: 4.0, 1025: 8.0}  # tokens -> t of the profiles 1, 2, 4, 8; L = 256


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model under NTK, with exponents of log-n by head and a LoRA, far from their start."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")
    longwave.extend(model, "ntk", max_factor=16, head_scalars=True, adapter=LoRA(4, 4.0))
    handle = longwave.extension(model)
    with torch.no_grad():
        for parameter in handle.learned["adapter"]:
            parameter.normal_(std=0.2)
        for parameter in handle.learned["heads"]:
            parameter.uniform_(0.5, 2)
    return longwave.save(model, tmp_path_factory.mktemp("own") / "m", tokenizer=AutoTokenizer.from_pretrained(DEMO))


@pytest.fixture(scope="module")
def exported(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "served"
    return longwave.export(own, out, profiles="1,2,4,8").folder


@torch.no_grad()
def logits(model, length: int) -> torch.Tensor:
    torch.manual_seed(length)
    return model(torch.randint(5, 500, (1, length)), use_cache=False).logits


def test_each_length_runs_at_the_t_of_its_profile(own: Path, exported: Path) -> None:
    found, wanted = (longwave.load(path, dtype="float32").eval() for path in (exported, own))
    assert longwave.extension(found).dial.policy == "fit"
    for length, t in T.items():
        assert longwave.extension(found).dial.factor_for(length) == t
        longwave.set_policy(wanted, "fixed", t)
        assert torch.equal(logits(found, length), logits(wanted, length)), length
    plain = AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32").eval()
    assert torch.equal(logits(found, 256), logits(plain, 256)) and not torch.equal(
        logits(found, 257), logits(plain, 257)
    )


def test_a_plain_model_under_a_method(tmp_path: Path) -> None:
    assert main(["export", str(DEMO), "--method", "yarn", "--profiles", "1,3", "--output", str(tmp_path / "out")]) == 0
    found = longwave.load(tmp_path / "out", dtype="float32").eval()
    wanted = longwave.extend(AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32").eval(), "yarn", max_factor=3)
    for length, t in ((200, 1.0), (300, 3.0)):
        longwave.set_policy(wanted, "fixed", t)
        assert torch.equal(logits(found, length), logits(wanted, length))


def test_the_folder_counts_as_the_extended_model(exported: Path, tmp_path: Path, monkeypatch) -> None:
    assert resolve(exported).kind is Kind.LONGWAVE and resolve(exported).name == str(exported)
    assert extension_of(exported) == ("ntk", 16.0)
    shape = outline(exported)
    assert shape is not None and longwave.extension(shape).schedule.spec == "steps=1/2/4/8"
    moved = shutil.copytree(exported, tmp_path / "moved")  # its parts know one another by their places in it
    shutil.move(moved, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    assert longwave.extension(longwave.load(".", dtype="float32")).adapter is not None


def test_engines_get_the_folder_around(exported: Path) -> None:
    assert has_profiles(str(exported)) and not has_profiles(str(DEMO))
    words = vllm_server.command(str(exported), ServeSettings())
    assert words[words.index("--model") + 1] == str(exported) and words[words.index("--max-loras") + 1] == "4"


def test_what_is_made_of_it_has_no_profiles(exported: Path, tmp_path: Path) -> None:
    frozen = longwave.export(exported, tmp_path / "frozen", factor=4.0).folder
    saved = longwave.save(longwave.load(exported, dtype="float32"), tmp_path / "saved")
    again = longwave.export(exported, tmp_path / "again", profiles="1,16").folder
    for config in (frozen / "config.json", saved / "model" / "config.json"):
        assert "rope_profiles" not in json.loads(config.read_text())
    factors = [each["factor"] for each in json.loads((again / "config.json").read_text())["rope_profiles"]["profiles"]]
    assert factors == [1.0, 16.0]
    assert torch.equal(logits(longwave.load(saved).eval(), 600), logits(longwave.load(exported).eval(), 600))


def test_commands(exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("def f(x):\n    return x + 1\n\n\n" * 400)
    how = ["--data", str(tmp_path / "text"), "--lengths", "256,512", "--windows", "1", "--output", str(tmp_path / "r")]
    assert main(["perplexity", str(exported), *how]) == 0
    capfd.readouterr()
    prompt = "def f(x):\n" * 60
    assert main(["generate", str(exported), "--prompt", prompt, "--max-new-tokens", "4", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["factor"] in (2.0, 4.0) and found["prompt_tokens"] > 256


@pytest.mark.parametrize("gone", ["longwave", "longwave-export.json"])
def test_without_its_extension_it_is_no_plain_model(exported: Path, tmp_path: Path, gone: str, capfd) -> None:
    folder = shutil.copytree(exported, tmp_path / "out")
    shutil.rmtree(folder / "longwave")
    data = str(DEMO / "README.md")
    (folder / gone).unlink(missing_ok=True)
    for command in (
        ["generate", "--prompt", "x"],
        ["perplexity", "--data", data, "--output", str(tmp_path / "r")],
        ["export", "--output", str(tmp_path / "y")],
    ):
        assert main([command[0], str(folder), *command[1:]]) == 1
        said = capfd.readouterr().err
        assert "has profiles for engines, and lacks longwave/longwave.json" in said and said.count("\n") <= 2, said


def test_other_weights_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "out")
    bytes_ = bytearray((folder / "model.safetensors").read_bytes())
    bytes_[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes_)
    with pytest.raises(ValueError, match="was trained on other weights than those in"):
        longwave.load(folder)
