"""Exports of models whose weights follow t: learned exponents of log-n and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_gguf import DEMO, make_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import longwave
from longwave.exporters import EXPORTERS, EngineMissing
from longwave.extensions.adapter import LoRA
from longwave.files import read_json, write_json

FACTOR = 4.0
TOLERANCE = 1e-3  # of log-probabilities: W + g·ΔW rounds otherwise than W·x + g·ΔW·x; granite is worst, 5e-4
PARTS: dict[str, dict[str, Any]] = {"heads": {"head_scalars": True}, "adapter": {"adapter": LoRA(4, 2.0)}}


def learned(model: PreTrainedModel, method: str = "ntk", *, equal: bool = False, **parts: Any) -> PreTrainedModel:
    """Extended, with parts that are far from their start, as training would leave them."""
    longwave.extend(model, method, max_factor=2 * FACTOR, **(parts or PARTS["heads"] | PARTS["adapter"]))
    handle = longwave.extension(model)
    with torch.no_grad():
        for parameter in handle.learned["adapter"]:
            parameter.normal_(std=0.2)
        for parameter in handle.learned["heads"]:
            parameter.fill_(1.5) if equal else parameter.uniform_(0.5, 3)
    return model.eval()


@pytest.mark.parametrize("part", PARTS)
def test_a_snapshot_refuses_what_it_cannot_hold(part: str, llama: LlamaForCausalLM) -> None:
    learned(llama, **PARTS[part])
    with pytest.raises(ValueError, match="no snapshot can express"):
        longwave.snapshot(llama, FACTOR)


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 16},
    "gpt_neox, half of the head": {
        "model_type": "gpt_neox", "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "qwen2 with biases": {"model_type": "qwen2"},
    "phi3": {"model_type": "phi3"},
    "olmo2": {"model_type": "olmo2"},
    "granite": {"model_type": "granite", "attention_bias": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 32},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma3_text": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32, "num_hidden_layers": 6},
    "exaone4": {"model_type": "exaone4", "head_dim": 16, "layer_types": ["full_attention"] * 2},
}  # fmt: skip
SHARED = ("qwen3", "gemma3_text", "exaone4")  # one norm of q for all heads
SEEN = ("llama", "gpt_neox, half of the head", "qwen2 with biases", "phi3")  # in other engines than transformers


def saved(family: str, folder: Path) -> tuple[PreTrainedModel, Path]:
    model = make_model(**FAMILIES[family])
    learned(model, equal=family in SHARED)
    return model, longwave.save(model, folder, tokenizer=AutoTokenizer.from_pretrained(DEMO))


def text(tokens: int = 200) -> Tensor:
    return torch.randint(1, 500, (1, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def distance(model: PreTrainedModel, other: PreTrainedModel) -> float:
    """Of log-probabilities, between the model as its export runs and another model."""
    with longwave.frozen(model, FACTOR):
        own = model(text()).logits.log_softmax(-1)
    return float((own - other(text()).logits.log_softmax(-1)).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_runs_the_export_as_frozen_runs_the_model(family: str, tmp_path: Path) -> None:
    model, own = saved(family, tmp_path / "own")
    before = model(text()).logits
    done = longwave.export(own, tmp_path / "out", factor=FACTOR)
    vanilla = AutoModelForCausalLM.from_pretrained(done.folder).eval()
    assert distance(model, vanilla) < TOLERANCE
    with longwave.frozen(model, FACTOR):
        expected = model.generate(text(100), max_new_tokens=20, do_sample=False)
    assert torch.equal(vanilla.generate(text(100), max_new_tokens=20, do_sample=False), expected)
    assert torch.equal(model(text()).logits, before), "frozen was not undone"
    assert any("W + g·ΔW with g = 1" in note for note in done.notes)
    assert any("exponents of log-n are constants" in note for note in done.notes)


@pytest.mark.parametrize("left_out", ["heads", "adapter"])
def test_an_export_without_a_part_is_another_model(left_out: str, tmp_path: Path) -> None:
    """The control: each part is seen by the comparison above."""
    model, own = saved("llama", tmp_path / "own")
    for parameter in longwave.extension(model).learned[left_out]:
        torch.nn.init.zeros_(parameter)
    vanilla = AutoModelForCausalLM.from_pretrained(longwave.export(own, tmp_path / "out", factor=FACTOR).folder)
    assert distance(model, vanilla) > 100 * TOLERANCE


def test_an_export_with_factors_of_one_is_another_model(tmp_path: Path) -> None:
    model, own = saved("llama", tmp_path / "own")
    done = longwave.export(own, tmp_path / "out", factor=FACTOR)
    config = read_json(done.folder / "config.json")
    for section in (config["rope_parameters"], config["rope_scaling"]):
        section["short_factor"] = section["long_factor"] = [1.0] * 8
    write_json(done.folder / "config.json", config)
    assert distance(model, AutoModelForCausalLM.from_pretrained(done.folder)) > 100 * TOLERANCE


@pytest.mark.slow
def test_log_n_may_be_dropped(tmp_path: Path) -> None:
    model, own = saved("qwen3", tmp_path / "own")
    for parameter in longwave.extension(model).learned["heads"]:
        torch.nn.init.zeros_(parameter)
    done = longwave.export(own, tmp_path / "out", factor=FACTOR, log_n="drop", verify=True)
    assert distance(model, AutoModelForCausalLM.from_pretrained(done.folder)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf", "gguf", "ctranslate2"])
@pytest.mark.parametrize("family", SEEN)
def test_verify_runs_the_export_in_its_engine_against_the_same_parts(family: str, target: str, tmp_path: Path) -> None:
    try:
        EXPORTERS[target].engine()
    except EngineMissing as missing:
        pytest.skip(str(missing))
    _, own = saved(family, tmp_path / "own")
    full = {"gguf": "f32", "ctranslate2": "float32"}.get(target)
    if target == "gguf" and family.startswith("gpt_neox"):
        with pytest.raises(ValueError, match="reads no frequency factors"):
            longwave.export(own, tmp_path / "out", target=target, factor=FACTOR)
        return
    done = longwave.export(own, tmp_path / "out", target=target, quantize=full, factor=FACTOR, verify=True)
    assert done.agreement is not None and done.agreement.equal == done.agreement.total
    assert done.agreement.max_difference is not None and done.agreement.max_difference < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf", "ctranslate2"])
def test_float32_keeps_what_a_base_of_16_bits_would_round(target: str, tmp_path: Path) -> None:
    """W + g·ΔW of a bfloat16 base has more digits than the base. In bfloat16 the engine would differ by 0.1."""
    try:
        EXPORTERS[target].engine()
    except EngineMissing as missing:
        pytest.skip(str(missing))
    base = tmp_path / "base"
    make_model(**FAMILIES["llama"]).to(torch.bfloat16).save_pretrained(base, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(base)
    own = longwave.save(learned(longwave.load(base, dtype="auto")), tmp_path / "own", base=base)
    done = longwave.export(own, tmp_path / "out", target=target, quantize="float32", factor=FACTOR, verify=True)
    assert done.agreement is not None and done.agreement.equal == done.agreement.total
    assert done.agreement.max_difference is not None and done.agreement.max_difference < 1e-3
    if target == "hf":
        assert AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto").dtype == torch.float32
        rounded = longwave.export(own, tmp_path / "keep", factor=FACTOR)
        assert any("rounded to bfloat16" in note and "--quantize float32" in note for note in rounded.notes)


def test_shards_of_a_base_that_is_named_keep_their_type(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_model(**FAMILIES["llama"]).to(torch.bfloat16).save_pretrained(base, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    model = learned(longwave.load(base, dtype="auto"))
    own = longwave.save(model, tmp_path / "own", base=base)
    done = longwave.export(own, tmp_path / "out", factor=FACTOR)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    names = [path.name for path in base.glob("*.safetensors")]
    assert len(names) > 2 and all((done.folder / name).is_file() for name in names)
    vanilla = AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto")
    assert vanilla.dtype == torch.bfloat16
    adapter, plain = longwave.extension(model).adapter, longwave.load(base, dtype="auto").state_dict()
    assert adapter is not None
    place = next(number for number, (_, name, _) in enumerate(adapter.places) if name == "up_proj")
    name = "model.layers.0.mlp.up_proj.weight"
    expected, found = plain[name].float() + adapter.delta(place, FACTOR), vanilla.state_dict()[name].float()
    assert not torch.equal(found, plain[name].float())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=5e-3)  # ΔW itself may be rounded in memory
    with pytest.raises(ValueError, match="lie inside one another"):
        longwave.export(own, own / "out", factor=FACTOR)


@pytest.mark.parametrize("family", SHARED)
def test_heads_that_share_a_norm_cannot_differ(family: str, tmp_path: Path) -> None:
    model = learned(make_model(**FAMILIES[family]))
    own = longwave.save(model, tmp_path / "own", tokenizer=AutoTokenizer.from_pretrained(DEMO))
    with pytest.raises(ValueError, match=rf"{family} normalises q by one weight for all heads \(q_norm\)"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)
    assert not (tmp_path / "out").exists()


def test_a_family_whose_queries_are_unknown_is_refused(tmp_path: Path) -> None:
    model = learned(make_model("cohere"))
    own = longwave.save(model, tmp_path / "own", tokenizer=AutoTokenizer.from_pretrained(DEMO))
    with pytest.raises(ValueError, match=r"does not know where cohere makes its queries.*--log-n drop"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    _, own = saved("llama", tmp_path / "own")
    config = own / "model/config.json"
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    write_json(config, {**read_json(config), "quantization_config": quantized})
    with pytest.raises(ValueError, match="cannot be merged into quantized ones"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)


def test_bands_are_refused_with_what_engines_can_run(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = longwave.save(learned(llama, "two-band"), tmp_path / "own", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"an engine alone scales frequencies.*longwave train --engine-ready"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)


def test_a_target_that_does_not_merge_is_refused(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = longwave.save(learned(llama), tmp_path / "own", tokenizer=tokenizer)
    monkeypatch.setattr(type(EXPORTERS["hf"]), "merges", False)
    with pytest.raises(ValueError, match="does not know weights that follow t"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)


def test_an_export_cannot_lose_its_log_n_again(tmp_path: Path) -> None:
    _, own = saved("llama", tmp_path / "own")
    done = longwave.export(own, tmp_path / "out", factor=FACTOR)
    with pytest.raises(ValueError, match="export the model that it was made from"):
        longwave.export(done.folder, tmp_path / "again", log_n="drop")
    again = longwave.export(done.folder, tmp_path / "again")
    assert (again.folder / "model.safetensors").read_bytes() == (done.folder / "model.safetensors").read_bytes()
