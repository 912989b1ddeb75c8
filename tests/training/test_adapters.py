"""LoRA without a gate, quantized bases, models that PEFT has wrapped, and parts that are frozen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import longwave
from longwave.checkpoints.quantized import Quantization
from longwave.checkpoints.same_weights import base_named_by
from longwave.cli.main import main
from longwave.training.config import TrainConfig
from longwave.training.learned import learned_parameters
from longwave.training.lora import LoraSettings

Train = Callable[..., Path]
L = 64
LONG: dict[str, Any] = {"method": "clex", "train_length": 2 * L, "field_lr": 1e-2}


@pytest.fixture
def base(plain: Path) -> Path:
    return plain


@torch.no_grad()
def logits(model: Any, tokens: int = 3 * L) -> Tensor:
    return model.eval()(input_ids=torch.arange(tokens)[None] * 7 % 256).logits


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "longwave.json").read_text())


def wrapped(model: LlamaForCausalLM, **more: Any) -> peft.PeftModel:
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **more))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("16", "r=16"), ("auto", "r=auto"), ("none", "none"), ("gate=none", "r=auto,gate=none"),
     ("targets=v_proj+q_proj, r=8 ,alpha=32,dropout=0.050", "r=8,alpha=32,dropout=0.05,targets=v_proj+q_proj"),
     ("r=full,targets=all-linear", "r=full")],
)  # fmt: skip
def test_one_spelling_of_lora(text: str, canonical: str) -> None:
    assert LoraSettings.canonical(text) == canonical == LoraSettings.canonical(canonical)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r=0", "r must be a whole number >= 1, full, or auto, got 0"),
        ("rank=4", "unknown setting 'rank'"),
        ("r=4,r=8", "r is given twice"),
        ("r=4,alpha=x", "'x' must be a number"),
        ("r=4,alpha=0", "alpha must be a number over 0"),
        ("r=4,dropout=1", "dropout must be at least 0 and under 1"),
        ("r=4,gate=soft", "unknown gate 'soft'"),
        ("r=4,targets=q_proj+", "targets must be names of linear layers"),
        ("r=4,bias", "has the form r=16"),
        ("r=full,alpha=4", "Leave alpha out"),
    ],
)
def test_a_lora_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.create(train_length=128, max_factor=8, lora=text)


def test_older_names_and_records_are_the_same_run() -> None:
    """`lora_rank` and `gate` were settings of their own."""
    new = TrainConfig.create(train_length=128, max_factor=8)
    older = {name: value for name, value in new.as_dict().items() if name not in ("lora", "quantize")}
    assert new.differences(older | {"lora_rank": "auto", "gate": None}) == []
    assert new.differences(older | {"lora_rank": "8", "gate": None}) == ["lora 'r=8' -> 'r=auto'"]
    assert TrainConfig.create(train_length=128, max_factor=8, lora_rank=8, gate="ramp").lora == "r=8,gate=ramp"
    with pytest.raises(ValueError, match="Give lora alone"):
        TrainConfig.create(train_length=128, max_factor=8, lora_rank=8, lora="r=8")


@pytest.mark.slow
def test_a_plain_lora_is_on_everywhere_saved_exactly_and_merged(base: Path, train: Train, tmp_path: Path) -> None:
    out = train(base, lora="r=4,alpha=16,dropout=0.1,targets=q_proj+v_proj,gate=none", **LONG, lr=1e-2)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 16, 0.1)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert settings_of(out)["adapter"]["gate"] == "none" and not (out / "model").exists()
    model, plain = longwave.load(out), longwave.load(base)
    assert not torch.equal(logits(model, L), logits(plain, L)), "off within L"
    assert torch.equal(logits(longwave.load(out)), logits(model))
    theirs = peft.PeftModel.from_pretrained(longwave.load(base), out / "adapter")
    assert (logits(theirs, L) - logits(model, L)).abs().max() < 1e-6, "PEFT runs another model"
    assert main(["merge", str(out), "--output", str(tmp_path / "merged")]) == 0
    merged = longwave.load(tmp_path / "merged")
    assert longwave.extension(merged).adapter is None and "adapter" not in settings_of(tmp_path / "merged")
    assert (logits(merged) - logits(model)).abs().max() < 1e-5
    further = train(out, "further", **LONG, lr=1e-2)
    assert settings_of(further)["base"] == settings_of(out)["base"] | {"relative": "../plain"}
    with pytest.raises(ValueError, match="gate=none, and gate hard is asked for"):
        train(out, "refused", lora="gate=hard", **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_lora_on_a_quantized_base(base: Path, train: Train, tmp_path: Path, kind: str) -> None:
    """Within L it is the quantized base, bit for bit. It is saved beside its base, reloaded exactly, and goes on."""
    pytest.importorskip("bitsandbytes", reason="needs the extra longwave[qlora]")
    out = train(base, lora="r=4", quantize=kind, **LONG, lr=1e-2)
    assert settings_of(out)["quantized"]["bits"] == kind and not (out / "model").exists()
    model, quantized = longwave.load(out), longwave.load(base, quantize=kind)
    assert Quantization.of(model) == Quantization.of(quantized) == Quantization(kind)
    assert torch.equal(logits(model, L), logits(quantized, L))
    assert not torch.equal(logits(quantized, L), logits(longwave.load(base), L)), "nothing was quantized"
    assert torch.equal(logits(longwave.load(out)), logits(model))
    learned = longwave.extension(model).learned
    assert all(parameter.dtype == torch.float32 for parameter in learned["field"])
    assert all(bool(parameter.any()) for parameter in learned["adapter"]), "B has not moved"
    train(out, "further", **LONG, lr=1e-2)
    assert settings_of(tmp_path / "further")["quantized"] == settings_of(out)["quantized"]
    other = "8bit" if kind == "4bit" else "4bit"
    with pytest.raises(ValueError, match=f"trained on weights in {kind}, not in {other}"):
        train(out, "refused", quantize=other, **LONG)
    with pytest.raises(ValueError, match=f"was trained on its base in {kind}"):
        longwave.merge(out, tmp_path / "merged")
    torch.manual_seed(1)
    LlamaForCausalLM(model.config.__class__(**json.loads((base / "config.json").read_text()))).save_pretrained(base)
    with pytest.raises(ValueError, match="was trained on other weights than those in"):
        longwave.load(out)


@pytest.mark.slow
def test_a_quantized_run_goes_on_bit_for_bit(base: Path, train: Train) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra longwave[qlora]")
    how = LONG | {"lora": "r=4", "quantize": "4bit", "steps": 4, "save_every": 2, "lr": 1e-2}
    whole = train(base, "whole", keep_checkpoints=True, **how)
    state = load_file(whole / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert state and all("lora_" in name or "rotary_emb" in name for name in state), "the base is copied"
    part = train(base, "part", keep_checkpoints=True, **how)
    shutil.rmtree(part / "checkpoints" / "checkpoint-4")
    (part / "longwave.json").unlink()
    train(base, "part", resume=True, **how)
    for name in ("longwave.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(whole / name), load_file(part / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_quantizing_what_cannot_be(base: Path, llama: LlamaForCausalLM, train: Train, monkeypatch: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra longwave[qlora]")
    with pytest.raises(ValueError, match=r"quantized and cannot be trained. Train a LoRA beside them"):
        train(base, quantize="4bit", **LONG)
    with pytest.raises(ValueError, match="Give its path"):
        train(llama, quantize="4bit", lora="r=4", **LONG)
    gated = train(base, "gated", lora="r=4", **LONG)
    with pytest.raises(ValueError, match="trained on weights that are not quantized, not in 4bit"):
        train(gated, "refused", quantize="4bit", **LONG)
    with pytest.raises(ValueError, match="follows t: within the original length it is off"):
        longwave.merge(gated, base.parent / "merged")
    monkeypatch.setattr("longwave.checkpoints.quantized.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"which is not installed: pip install 'longwave\[qlora\]'"):
        train(base, "refused", quantize="4bit", lora="r=4", **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["extend, then PEFT", "PEFT alone"])
def test_a_model_that_peft_has_wrapped_trains_and_is_saved_whole(
    base: Path, train: Train, before: bool, tmp_path: Path
) -> None:
    plain = LlamaForCausalLM.from_pretrained(base)
    if before:
        longwave.extend(plain, "clex", max_factor=8)
    model = wrapped(plain)
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    out = train(model, **LONG, lr=1e-2)
    moved = {name for name, p in model.named_parameters() if name in start and not torch.equal(p, start[name])}
    assert any("lora_B" in name for name in moved) and all("lora_" in name or "rotary" in name for name in moved)
    assert longwave.extension(model).is_trained, "the field has not moved"
    assert "base" in settings_of(out) and not (out / "model").exists()
    assert torch.equal(logits(longwave.load(out)), logits(model))
    longwave.save(model, tmp_path / "whole")
    assert (tmp_path / "whole" / "model" / "model.safetensors").stat().st_size > 1e5
    assert torch.equal(logits(longwave.load(tmp_path / "whole")), logits(model))
    assert main(["merge", str(out), "--output", str(tmp_path / "merged")]) == 0
    assert (logits(longwave.load(tmp_path / "merged")) - logits(model)).abs().max() < 1e-5
    with pytest.warns(UserWarning, match="PEFT saves its adapter alone"):
        model.save_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"use_dora": True}, "use_dora True, which longwave cannot save"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"inference_mode": True}, "frozen, as PEFT loads it for inference"),
    ],
)
def test_an_adapter_of_peft_that_cannot_be_saved(
    llama: LlamaForCausalLM, train: Train, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(wrapped(llama, **how), **LONG)


def test_another_lora_than_peft_has_put_on_is_refused(llama: LlamaForCausalLM, train: Train) -> None:
    with pytest.raises(ValueError, match=r"has a LoRA with r=4.*, and r 8 is asked for"):
        train(wrapped(llama), lora="r=8", **LONG)
    with pytest.raises(ValueError, match="or a PeftModel around it, got Sequential"):
        train(torch.nn.Sequential(llama), **LONG)


def trainer_of(model: Any, folder: Path, length: int = 32) -> Trainer:
    ids = torch.randint(1, 256, (8, length), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_another_trainer_trains_the_field_within_drawn_lengths(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """PEFT after extend freezes the field without a word; rows of L tokens alone would teach it nothing."""
    longwave.extend(llama, "clex", max_factor=8)
    model = wrapped(llama)
    frozen = {name: p.detach().clone() for name, p in learned_parameters(model, "field").items()}
    with (
        pytest.raises(ValueError, match=r"the learned frequencies are frozen .*longwave.unfreeze\(model\)"),
        longwave.drawn_lengths(model),
    ):
        pass
    trainer_of(longwave.unfreeze(model), tmp_path / "a").train()
    assert all(torch.equal(p, frozen[name]) for name, p in learned_parameters(model, "field").items())
    with longwave.drawn_lengths(model):
        trainer_of(model, tmp_path / "b").train()
        with pytest.raises(ValueError, match="packed with several sequences"):
            model.train()(torch.ones(1, 4).long(), position_ids=torch.tensor([[0, 1, 0, 1]]))
    assert not any(torch.equal(p, frozen[name]) for name, p in learned_parameters(model, "field").items())
    assert longwave.extension(model).dial.now.factor is None
    longwave.save(model, tmp_path / "out")
    assert torch.equal(logits(longwave.load(tmp_path / "out")), logits(model))


def test_a_base_is_named_only_where_all_its_weights_are_there(plain: Path) -> None:
    model = longwave.load(plain)
    assert base_named_by(model, model) == plain
    model.resize_token_embeddings(300)
    assert base_named_by(model, model) is None
    model = longwave.load(plain)
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.add_(1e-3)
        assert base_named_by(model, model) is None, name
        with torch.no_grad():
            parameter.copy_(longwave.load(plain).get_parameter(name))
