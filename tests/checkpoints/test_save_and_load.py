"""save and load: exact round trips, folders that are damaged, and checkpoints of the official code."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import longwave
from longwave.extensions.handle import extension
from longwave.extensions.sites import host_of
from longwave.extensions.steering import log_n_of

L = 64
GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "clex_official.json").read_text())


def logits(model: PreTrainedModel, length: int = 3 * L) -> Tensor:
    ids = torch.arange(2 * length).reshape(2, length) * 7 % 120 + 3
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def trained(model: PreTrainedModel, method: str = "clex", **options: object) -> PreTrainedModel:
    longwave.extend(model, method, max_factor=4, **options)
    for trajectory in extension(model).trajectories:
        for parameter in trajectory.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def folder(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    return longwave.save(trained(llama), tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ntk", {"slope": 1.0}),
        ("yarn@static=2", {"beyond": "clamp"}),
        ("longrope@threshold", {"long_factor": [1.0 + i for i in range(8)]}),
        ("clex@ceiling", {"prior": "ntk", "log_n": 0.5}),
        ("clex-paper", {"amplification": 2, "original_length": 50}),
    ],
)
def test_round_trip_is_exact(llama: LlamaForCausalLM, tmp_path: Path, method: str, options: dict) -> None:
    before = logits(trained(llama, method, **options))
    longwave.save(llama, tmp_path / "out")
    assert torch.equal(logits(llama), before)  # saving leaves the model as it was
    loaded = longwave.load(tmp_path / "out")
    assert torch.equal(logits(loaded), before)
    for ours, theirs in zip(longwave.rotaries(loaded), longwave.rotaries(llama), strict=True):
        assert repr(ours) == repr(theirs)
        assert ours.trajectory.options() == theirs.trajectory.options()
    assert log_n_of(host_of(loaded)) == log_n_of(llama)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gemma3_text", "moshi", "granite_swa"])
def test_round_trip_of_other_families(tmp_path: Path, model_type: str) -> None:
    model = trained(tiny_model(model_type), log_n=False)
    longwave.save(model, tmp_path / "out")
    assert torch.equal(logits(longwave.load(tmp_path / "out"), 100), logits(model, 100))


def test_the_folder(llama: LlamaForCausalLM, tokenizer, tmp_path: Path) -> None:
    tokenizer.model_max_length = L
    folder = longwave.save(trained(llama), tmp_path / "out", tokenizer=tokenizer)
    assert not (folder / "config.json").exists()
    settings = json.loads((folder / "longwave.json").read_text())
    assert settings["method"] == "clex" and settings["trained"] is True and settings["original_length"] == L
    read = AutoTokenizer.from_pretrained(folder)
    assert read("abc").input_ids == tokenizer("abc").input_ids
    assert read.model_max_length == 4 * L and tokenizer.model_max_length == L
    plain = LlamaForCausalLM.from_pretrained(folder / "model")
    assert torch.equal(logits(plain), logits(longwave.restore(llama)))
    with pytest.raises(ValueError, match="is not empty"):
        longwave.save(longwave.extend(llama, "ntk", max_factor=4), folder)
    longwave.save(llama, folder, overwrite=True)
    assert longwave.rotaries(longwave.load(folder))[0].trajectory.name == "ntk"


def test_all_files_have_the_permissions_of_new_ones(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """safetensors makes its files 0600. What lies there beside stays as it is."""
    private = tmp_path / "out" / "private.safetensors"
    private.parent.mkdir()
    private.touch(0o600)
    before = os.umask(0o022)
    try:
        folder = longwave.save(trained(llama), tmp_path / "out", overwrite=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes.pop("private.safetensors") == 0o600 and set(modes.values()) == {0o644} and len(modes) >= 4, modes


def test_an_overwrite_leaves_nothing_of_the_tokenizer_before(
    llama: LlamaForCausalLM, tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{{ messages }}"
    longwave.save(trained(llama), folder, tokenizer=chat)
    (folder / "added_tokens.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    assert AutoTokenizer.from_pretrained(folder).chat_template is not None
    longwave.save(llama, folder, tokenizer=tokenizer, overwrite=True)
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    assert not (folder / "added_tokens.json").exists() and (folder / "notes.txt").exists()
    longwave.save(llama, folder, tokenizer=chat, overwrite=True)
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"
    longwave.save(llama, folder, overwrite=True)  # without a tokenizer: the one that is there stays
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"


def test_an_overwrite_in_another_number_of_files(
    llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = longwave.save(trained(llama), tmp_path / "out")
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
    write = type(llama).save_pretrained
    monkeypatch.setattr(type(llama), "save_pretrained", lambda self, path: write(self, path, max_shard_size="100KB"))
    longwave.save(llama, folder, overwrite=True)
    assert (folder / "model" / "model.safetensors.index.json").exists()
    assert torch.equal(logits(longwave.load(folder), 100), logits(llama, 100))
    monkeypatch.undo()
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
    longwave.save(llama, folder, overwrite=True)
    assert torch.equal(logits(longwave.load(folder), 100), logits(llama, 100))


def test_an_interrupted_overwrite_does_not_load(llama: LlamaForCausalLM, folder: Path) -> None:
    (folder / ".longwave.safetensors").mkdir()  # no file can be written there: save ends after the model
    with pytest.raises(SafetensorError, match="Is a directory"):
        longwave.save(llama, folder, overwrite=True)
    with pytest.raises(ValueError, match=r"longwave\.json is missing: the folder is incomplete"):
        longwave.load(folder)


def test_save_needs_an_extended_model(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not extended"):
        longwave.save(llama, tmp_path / "out")
    longwave.extend(llama, "ntk", max_factor=4)
    with pytest.raises(ValueError, match="must be a folder's path, got NoneType"):
        longwave.save(llama, None)
    with pytest.raises(ValueError, match="tokenizer must be a tokenizer of transformers, got str"):
        longwave.save(llama, tmp_path / "out", tokenizer="my-model")
    assert not (tmp_path / "out").exists()


def test_load_passes_arguments_on(folder: Path) -> None:
    model = longwave.load(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    (rotary,) = longwave.rotaries(model)
    assert rotary.inv_freq.dtype == torch.float32
    assert {parameter.dtype for parameter in rotary.parameters()} == {torch.float32}


def test_a_plain_model_comes_back_plain(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    model = longwave.load(tmp_path)
    assert torch.equal(logits(model), logits(llama))
    with pytest.raises(ValueError, match="not extended"):
        longwave.rotaries(model)


def test_is_trained(llama: LlamaForCausalLM) -> None:
    for method, fresh in (("yarn", True), ("clex", False), ("clex-paper", False)):
        assert longwave.extension(longwave.extend(llama, method, max_factor=4)).is_trained is fresh
        assert longwave.extension(trained(longwave.restore(llama), method)).is_trained
        longwave.restore(llama)


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def damage(folder: Path, how: str) -> None:
    settings, weights = folder / "longwave.json", folder / "longwave.safetensors"
    if how == "no json":
        settings.unlink()
    elif how == "bad json":
        settings.write_text('{"format": 1,')
    elif how == "json of something else":
        settings.write_text("[1, 2]")
    elif how == "missing key":
        edit(settings, schedule=None)
    elif how == "newer format":
        edit(settings, format=9)
    elif how == "unknown method":
        edit(settings, method="clx")
    elif how == "unknown option":
        edit(settings, options={"curvature": 1})
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "garbage weights":
        weights.write_bytes(b"no tensors here")
    elif how == "foreign weights":
        save_file({"lm_head.weight": torch.zeros(2, 2)}, weights)
    elif how == "weights of another size":
        save_file({name: value[:-1].contiguous() for name, value in load_file(weights).items()}, weights)
    elif how == "weights of another model":
        tensors = load_file(weights)
        save_file(tensors | {"0.rope": tensors["0.rope"] * 0.9}, weights)
    elif how == "truncated model":
        model = folder / "model" / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-100])
    elif how == "foreign model":
        save_file({"weight": torch.zeros(2, 2)}, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    elif how == "no model":
        for path in (folder / "model").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no json", r"longwave\.json is missing"),
        ("bad json", r"longwave\.json is not valid JSON"),
        ("json of something else", r"longwave\.json lacks format"),
        ("missing key", r"longwave\.json lacks schedule"),
        ("newer format", r"longwave\.json has format 9, this version reads 2 to 5\. Update"),
        ("unknown method", r"longwave\.json: unknown method 'clx'. Did you mean 'clex'"),
        ("unknown option", r"longwave\.json: .*curvature"),
        ("no weights", r"longwave\.safetensors is missing"),
        ("truncated weights", r"longwave\.safetensors is damaged"),
        ("garbage weights", r"longwave\.safetensors is damaged"),
        ("foreign weights", r"longwave\.safetensors holds other tensors"),
        ("weights of another size", r"longwave\.safetensors holds other tensors"),
        ("weights of another model", r"longwave\.safetensors was made for other rotary frequencies"),
        ("truncated model", r"cannot load a model from .*model"),
        ("foreign model", r"model lacks 21 weights of its model"),
        ("no model", r"model/config\.json is missing: the folder is incomplete"),
    ],
)
def test_a_damaged_folder_is_one_line_that_names_the_file(folder: Path, how: str, message: str) -> None:
    damage(folder, how)
    with pytest.raises(ValueError, match=message) as caught:
        longwave.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model: neither longwave\.json nor config\.json"):
        longwave.load(tmp_path)
    with pytest.raises(ValueError, match=r"model folder .* does not exist"):
        longwave.load(tmp_path / "absent")


def legacy_folder(folder: Path, case: str, **scaling: object) -> Path:
    """A tiny Llama saved as the official code saves it: the CLEX layer among the weights."""
    settings, arrays = CASES[case], np.load(GOLDEN / "clex_official.npz")
    dim = settings["rotary_dim"]
    config = LlamaConfig(
        vocab_size=32, hidden_size=dim, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, head_dim=dim,
        max_position_embeddings=settings["original_length"],
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    prefix, weights = "model.clex_layer", folder / "model.safetensors"
    layer = {
        f"{prefix}.proj_func.ode_up_proj": torch.from_numpy(arrays[f"{case}/up"]),
        f"{prefix}.proj_func.ode_down_proj": torch.from_numpy(arrays[f"{case}/down"]),
        f"{prefix}.inv_freq": torch.from_numpy(arrays[f"{case}/inv_freq"][0]).bfloat16(),  # as released: rounded
    }
    save_file(load_file(weights) | layer, weights, metadata={"format": "pt"})
    official = json.loads((folder / "config.json").read_text())
    del official["rope_parameters"]
    official |= {
        "rope_theta": settings["base"],
        "rope_scaling": {
            "type": "clex", "max_factor": settings["max_factor"], "param_factor": settings["param_factor"],
            "act": settings["activation"], "time_dt": 0.01, "factor": 1,
        } | scaling,
        "log_scale": True,
        "auto_map": {"AutoModelForCausalLM": "modeling_clex.LlamaForCausalLM"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(official))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_official_checkpoint_gives_official_cos_and_sin_at_every_integer_t(tmp_path: Path, case: str) -> None:
    model = longwave.load(legacy_folder(tmp_path, case))
    official = np.load(GOLDEN / "clex_official.npz")[f"{case}/inv_freq"]
    length, pairs = CASES[case]["original_length"], CASES[case]["rotary_dim"] // 2
    for t, inv_freq in enumerate(torch.from_numpy(official).double(), 1):
        positions = torch.tensor([*range(32), t * length - 1])[None]  # the last one makes it t
        with torch.no_grad():
            cos, sin = model.model.rotary_emb(torch.zeros(1), positions)
        angle = positions[0, :32, None] * inv_freq
        bound = 2e-4 * angle + 1e-6  # 2e-4 relative in the frequency, float32 in cos and sin
        assert bool(((cos[0, :32, :pairs] - angle.cos()).abs() <= bound).all())
        assert bool(((sin[0, :32, :pairs] - angle.sin()).abs() <= bound).all())
    assert log_n_of(model) == 1.0 and longwave.rotaries(model)[0].schedule.spec == "ceiling"


def test_official_checkpoint_without_act_is_version_1(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path, "silu_d64")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_scaling"]["act"], config["rope_scaling"]["time_dt"]
    (folder / "config.json").write_text(json.dumps(config))
    assert longwave.rotaries(longwave.load(folder))[0].trajectory.options()["activation"] == "silu"


def test_official_checkpoint_by_its_name_on_the_hub(tmp_path: Path) -> None:
    """From a cache laid out as huggingface_hub does, without a network."""
    repository, commit = tmp_path / "models--damo--clex", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = legacy_folder(repository / "snapshots" / commit, "tanh_d64")
    model = longwave.load("damo/clex", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(longwave.snapshot(model, 7.0).inv_freq, longwave.snapshot(longwave.load(folder), 7.0).inv_freq)


def test_an_unknown_rope_type_is_one_line(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
    with pytest.raises(ValueError, match=r"cannot load a model from .*transformers does not know its 'spiral'"):
        longwave.load(tmp_path)


def test_official_checkpoint_can_be_saved_as_ours(tmp_path: Path) -> None:
    model = longwave.load(legacy_folder(tmp_path / "theirs", "tanh_d64"))
    loaded = longwave.load(longwave.save(model, tmp_path / "ours"))
    frozen, again = longwave.snapshot(model, 7.0), longwave.snapshot(loaded, 7.0)
    assert torch.equal(frozen.inv_freq, again.inv_freq)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_factor": None}, r"config\.json: a CLEX config needs"),
        ({"param_factor": 2}, "ode_up_proj has shape"),
        ({"act": "relu"}, "unknown activation 'relu'"),
    ],
)
def test_damaged_official_checkpoints(tmp_path: Path, change: dict, message: str) -> None:
    folder = legacy_folder(tmp_path, "silu_d64", **change)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {name: value for name, value in config["rope_scaling"].items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        longwave.load(folder)


def test_official_config_without_the_layer(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path, "silu_d64")
    tensors = load_file(folder / "model.safetensors")
    plain = {name: value for name, value in tensors.items() if "clex_layer" not in name}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no clex_layer\.proj_func"):
        longwave.load(folder)
    truncated = folder / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        longwave.load(folder)
