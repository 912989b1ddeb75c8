"""`longwave export --profiles`: one folder with the plain weights, and what t makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import longwave
from longwave.extensions.adapter import LoRA
from longwave.serving.profiles import Profiles
from longwave.serving.rows import log_ratios, table

DEMO = Path(longwave.__file__).parent / "demo" / "model"
ASKED = "1,2,4,8"


@pytest.fixture
def learned(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """The demo's model under NTK, with exponents of log-n by head and a LoRA, far from their start."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")
    longwave.extend(model, "ntk", max_factor=16, head_scalars=True, adapter=LoRA(4, 4.0))
    handle = longwave.extension(model)
    with torch.no_grad():
        for parameter in handle.learned["adapter"]:
            parameter.normal_(std=0.2)
        for parameter in handle.learned["heads"]:
            parameter.uniform_(0.5, 2)
    folder = longwave.save(model, tmp_path / "own", tokenizer=AutoTokenizer.from_pretrained(DEMO))
    return model.eval(), folder


def read(folder: Path) -> Profiles:
    found = Profiles.of(json.loads((folder / "config.json").read_text()))
    assert found is not None
    return found


def test_the_weights_are_the_plain_ones_and_the_limit_is_l(learned, tmp_path) -> None:
    _, own = learned
    out = longwave.export(own, tmp_path / "out", profiles=ASKED).folder
    plain = load_file(DEMO / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    config = AutoConfig.from_pretrained(out)
    assert config.max_position_embeddings == 256 and config.rope_parameters["rope_type"] == "default"
    ids = torch.randint(5, 500, (1, 200))
    there = AutoModelForCausalLM.from_pretrained(out, dtype="float32")(ids).logits
    assert torch.equal(there, AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")(ids).logits)
    assert "longwave serve out" in (out / "README.md").read_text()


def test_each_profile_is_the_model_at_its_t(learned, tmp_path) -> None:
    """Frequencies, exponents of log-n and W + g·ΔW: what an engine is told gives what longwave computes."""
    model, own = learned
    out = longwave.export(own, tmp_path / "out", profiles=ASKED).folder
    found = read(out)
    assert [each.factor for each in found.profiles] == [1.0, 2.0, 4.0, 8.0] and found.max_length == 2048
    handle = longwave.extension(model)
    assert found.log_n_heads == {
        layer: pytest.approx(handle.heads.log_n_of(layer).tolist()) for layer in handle.heads.rows
    }
    assert [each.adapter for each in found.profiles] == [None, "adapters/t2", "adapters/t4", "adapters/t8"]
    base = AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")
    for each in found.profiles[1:]:
        assert torch.allclose(
            torch.tensor(each.inv_freq), handle.trajectory.at(each.factor).inv_freq.float(), rtol=1e-6
        )
        merged = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32"), out / each.adapter
        ).merge_and_unload()
        for place, (parent, name, _) in enumerate(handle.adapter.places):
            path = next(key for key, module in model.named_modules() if module is parent) + f".{name}"
            change = merged.get_submodule(path).weight - base.get_submodule(path).weight
            wanted = handle.adapter.delta(place, each.factor)
            assert torch.allclose(change, wanted, atol=1e-5), path


def test_rows_of_a_table_are_cos_and_sin_at_t(learned, tmp_path) -> None:
    _, own = learned
    found = read(longwave.export(own, tmp_path / "out", profiles=ASKED).folder)
    base = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["rope_theta"]
    for each in found.profiles:
        rows = table(each, base, each.length, torch.device("cpu"))
        angles = torch.outer(torch.arange(each.length, dtype=torch.float64), torch.tensor(each.inv_freq).double())
        wanted = torch.cat((angles.cos(), angles.sin()), dim=-1) * each.attention_scaling
        assert rows.dtype == torch.float32 and (rows - wanted).abs().max() < 2e-4  # float32 angles of 2,048 rad


def test_log_n_begins_beyond_l(learned, tmp_path) -> None:
    _, own = learned
    found = read(longwave.export(own, tmp_path / "out", profiles=ASKED).folder)
    padding, starts, rows = 3, [0], 256
    for each in found.profiles[1:]:
        starts.append(rows)
        rows += each.length + padding
    ratios = log_ratios(found, starts, rows, padding)
    assert not ratios[:256].any(), "the rows of the plain model"
    for start, each in zip(starts[1:], found.profiles[1:], strict=True):
        own_rows = ratios[start : start + each.length + padding]
        assert not own_rows[:256].any() and bool((own_rows[256:].diff() > 0).all())
        last = torch.tensor(each.length).double().log() / torch.tensor(256.0).double().log()
        assert own_rows[each.length - 1] == pytest.approx(float(last.log()), rel=1e-6)


def test_a_t_beyond_the_model_s_is_refused(learned, tmp_path) -> None:
    _, own = learned
    with pytest.raises(ValueError, match=r"factor 32 is not within 1 to 16"):
        longwave.export(own, tmp_path / "out", profiles="1,2,32")
    assert not (tmp_path / "out").exists()
