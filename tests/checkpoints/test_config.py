"""config.json is checked where a folder is opened: a wrong value is one line that names file, key and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model_types
from transformers import LlamaForCausalLM, T5Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import longwave
from longwave.checkpoints.config import ConfigFile
from longwave.checkpoints.load import extension_of
from longwave.checkpoints.plain import skeleton
from longwave.cli.errors import explain
from longwave.cli.main import main
from longwave.methods.longrope import LongRoPE
from longwave.rope import Rope

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ONES = [1.0] * 8


@pytest.fixture
def folder(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps(config))
    return tmp_path / "llama"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


BAD: list[tuple[dict[str, Any], str]] = [
    *(
        ({"rope_scaling": YARN | {key: value}}, f"rope_scaling: {key} is .*, it must be ")
        for key in ("factor", "original_max_position_embeddings", "attention_factor")
        for value in ("4.0", 0, -2, True, [4.0])
    ),
    ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "rope_parameters: factor is '4', it must be"),
    ({"rope_parameters": {"full_attention": YARN | {"factor": 0}}}, "rope_parameters.full_attention: factor is 0"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: type 'yarn' lacks factor"),
    ({"rope_scaling": YARN | {"original_max_position_embeddings": None}}, "original_max_position_embeddings is null"),
    ({"rope_scaling": 1}, "rope_scaling: it is 1, which is no object"),
    ({"rope_scaling": {"type": ["yarn"]}}, "type is .*, it must be the name of a rope type"),
    ({"rope_scaling": {"type": "su", "factor": 4.0}}, "type 'su', which is called 'longrope' today"),
    (
        {"rope_scaling": {"type": "longrope", "short_factor": ONES[:6], "long_factor": ONES[:6]}},
        "short_factor has 6 numbers, this model has 8 frequencies",
    ),
    ({"rope_theta": "1000000"}, "rope_theta is '1000000', it must be a number above 0"),
    ({"rope_theta": None}, "needs a value where rope_theta is null"),
    ({"max_position_embeddings": None}, "needs a value where max_position_embeddings is null"),
    ({"max_position_embeddings": -1}, "max_position_embeddings is -1, it must be a whole number"),
    ({"torch_dtype": "bf16"}, "torch_dtype is 'bf16', it must be a type of torch"),
    ({"hidden_size": 66, "head_dim": None}, "hidden size .66. is not a multiple"),
    *(
        ({key: value}, f"{key} is {value}, it must be a whole number above 0")
        for key, value in {
            "hidden_size": -64,
            "vocab_size": 0,
            "num_attention_heads": 0,
            "num_hidden_layers": -1,
        }.items()
    ),
    ({"rope_theta": 10**400}, "rope_theta is 1000.*, it must be a number above 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_wrong_value_is_one_line(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder, **changes)
    for opens in (longwave.load, skeleton):
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}.*Correct the file\.$") as caught:
            opens(folder)
        assert "\n" not in str(caught.value)


def test_every_default_config_passes() -> None:
    without, checked = [], 0
    for name in model_types():
        try:
            values = json.loads(CONFIG_MAPPING[name]().to_json_string(use_diff=False))
        except Exception:
            without.append(name)
            continue
        ConfigFile(name, values).check()
        checked += 1
    assert checked > 100 and len(without) < 10, without


def test_rope_scaling_beside_rope_parameters_is_the_one_that_runs(folder: Path) -> None:
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_scaling=YARN)
    assert extension_of(folder) == ("yarn", 4.0)
    assert longwave.rotaries(longwave.load(folder))[0].trajectory.name == "yarn"


@pytest.mark.parametrize("key", [{"finetuned": True}, {"mrope_section": [2, 3, 3]}])
def test_keys_that_change_no_frequency_are_recognised(key: dict[str, Any], folder: Path) -> None:
    edit(folder, rope_scaling=YARN | key)
    assert longwave.rotaries(longwave.load(folder))[0].max_length == 256


@pytest.mark.parametrize("longest", [64, 256])
def test_a_method_on_top_of_a_scaling_counts_from_its_reach(longest: int, folder: Path) -> None:
    edit(folder, rope_scaling=YARN, max_position_embeddings=longest)
    model = longwave.load(folder)
    assert longwave.rotaries(model)[0].trajectory.rope.original_length == 64  # z(1) is the unscaled rope
    longwave.extend(model, "ntk", max_factor=2.0)
    assert longwave.rotaries(model)[0].trajectory.rope.original_length == 256  # z(1) is the scaled one
    assert longwave.rotaries(model)[0].max_length == 512


def test_a_scaling_that_is_not_recognised_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, rope_scaling={"type": "linear", "factor": 4.0})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = Path(longwave.__file__).parent / "demo" / "model" / name
        (folder / name).write_bytes(source.read_bytes())
    assert main(["export", str(folder), "--output", str(folder.parent / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("its original length is unknown") == 1 and "--method" not in said
    assert main(["generate", str(folder), "--prompt", "Once upon a time " * 80]) == 1
    said = capsys.readouterr().err
    assert said.count("its original length is unknown") == 1 and "--method" not in said


def test_longrope_stays_on_the_cpu() -> None:
    rope = Rope(1 / 1e4 ** (torch.arange(0, 16, 2) / 16), 64)
    torch.set_default_device("meta")
    try:
        assert LongRoPE(rope, 4.0, [2.0] * 8).at(4.0).stretch.tolist() == pytest.approx([2.0] * 8)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("arguments", [{"foo": 1}, {"dtype": "flaot32"}])
def test_an_argument_that_cannot_be_is_no_fault_of_the_file(arguments: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot load a model from .*(foo|flaot32)") as caught:
        longwave.load(folder, **arguments)
    assert "config.json" not in str(caught.value) and "Correct" not in str(caught.value)


def test_a_model_that_is_no_causal_language_model(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    for opens in (longwave.load, skeleton):
        with pytest.raises(ValueError, match="has model_type 't5', which is no causal language model"):
            opens(tmp_path)


def test_a_lack_of_memory_is_no_fault_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", full)
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory") as caught:
        longwave.load(folder)
    assert explain(caught.value).startswith("the memory does not suffice")


@pytest.mark.parametrize("changes", [{"auto_map": "own.Own"}, {"auto_map": ["own.Own"]}, {"auto_map": {}}])
def test_foreign_code_in_any_form(changes: dict[str, Any], folder: Path) -> None:
    for model_type in ("own", ["own"]):
        edit(folder, model_type=model_type, **changes)
        with pytest.raises(ValueError, match=r"config\.json (asks for the class .*own\.Own|has model_type .*own)"):
            longwave.load(folder)


def test_a_subfolder_is_named_and_checked(folder: Path) -> None:
    (folder / "part").mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(folder / "part" / path.name)
    assert longwave.load(folder, subfolder="part").config.model_type == "llama"
    edit(folder / "part", vocab_size=0)
    with pytest.raises(ValueError, match=r"llama/part/config\.json: vocab_size is 0"):
        longwave.load(folder, subfolder="part")
    edit(folder / "part", vocab_size=32, model_type="own", auto_map={"AutoModelForCausalLM": "own.Own"})
    with pytest.raises(ValueError, match=r"llama/part/config\.json asks for the class own\.Own"):
        longwave.load(folder, subfolder="part")
