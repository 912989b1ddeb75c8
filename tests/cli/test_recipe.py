"""`longwave train` without a method: what it writes, how it goes on, and what it and its folder refuse in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.cli.main import main

L = 64
WEIGHTS, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A base, another one, a book, and `ours`, which the command trained on the base."""
    folder = tmp_path_factory.mktemp("recipe")
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=L, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate(("base", "other")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    text = "".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400))
    (folder / "book.txt").write_text(text, "utf-8")
    assert main(command(folder, "base", "ours", "--lora", "r=4")) == 0
    return folder


def command(place: Path, model: str, output: object, *more: object) -> list[str]:
    sizes = ["--train-length", 2 * L, "--max-factor", 8, "--steps", 2, "--batch-size", 2, "--lr", "1e-2"]
    line = ["train", place / model, "--data", place / "book.txt", "--output", place / str(output), *sizes, *more]
    return [str(word) for word in line]


def learned(folder: Path) -> dict[str, Tensor]:
    return {**load_file(folder / WEIGHTS), **load_file(folder / "longwave.safetensors")}


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    found = capsys.readouterr().err
    errors = [line for line in found.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and found.splitlines()[-1] == errors[0], found
    return errors[0]


@pytest.mark.slow
def test_the_folder_names_the_base_and_holds_what_was_learned(place: Path) -> None:
    folder = place / "ours"
    settings = json.loads((folder / "longwave.json").read_text())
    assert (settings["format"], settings["head_scalars"]) == (4, True)
    assert settings["adapter"] == {"trained_factor": 2.0, "gate": "capped"}
    assert settings["base"]["model"] == str((place / "base").resolve())
    assert not (folder / "model").exists()
    assert any(bool(tensor.any()) for name, tensor in load_file(folder / WEIGHTS).items() if "lora_B" in name)
    ids = torch.arange(3 * L)[None] % 97
    with torch.no_grad():
        model, base = longwave.load(folder), longwave.load(place / "base")
        assert torch.equal(model(ids[:, :L]).logits, base(ids[:, :L]).logits)
        assert not torch.equal(model(ids).logits, longwave.extend(base, max_factor=8)(ids).logits)


@pytest.mark.slow
def test_an_adapter_folder_is_taken_further(place: Path) -> None:
    """One step at rate zero leaves scalars and LoRA as they were, of whatever rank; one at a rate moves both."""
    before = learned(place / "ours")
    assert main(command(place, "ours", "same", "--steps", 1, "--warmup", 1)) == 0
    same = learned(place / "same")
    assert same.keys() == before.keys() and all(torch.equal(same[name], before[name]) for name in before)
    assert main(command(place, "ours", "further", "--train-length", 4 * L)) == 0
    further = learned(place / "further")
    moved = {name for name in before if not torch.equal(further[name], before[name])}
    assert {"heads.mass", "heads.log_n"} <= moved
    assert {name for name in before if "lora_" in name} <= moved
    settings = json.loads((place / "further" / "longwave.json").read_text())
    assert settings["adapter"]["trained_factor"] == 4.0
    assert Path(settings["base"]["model"]) == (place / "base").resolve(), "not the folder that was taken further"
    assert main(command(place, "ours", "scalars", "--freeze-weights")) == 0
    scalars = learned(place / "scalars")
    assert {name for name in before if not torch.equal(scalars[name], before[name])} == {"heads.mass", "heads.log_n"}


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("base", "--lora r=0", "lora: r must be a whole number >= 1, full, or auto, got 0"),
        ("base", "--lora 1.5", "lora: r must be a whole number >= 1, full, or auto, got '1.5'"),
        ("base", "--lora-rank many", "lora: r must be a whole number >= 1, full, or auto, got 'many'"),
        ("base", "--engine-ready --method two-band", "two-band is an attention method, which none of them has. Leave"),
        ("base", "--engine-ready --method yarn+dca", "dca is an attention method, which none of them has. Leave"),
        ("base", "--train-length 64", "a LoRA is off within the original length, 64 tokens, .* Raise the train length"),
        ("base", "--train-length 50 --engine-ready", "a LoRA is off within the original length, .* best to 256"),
        ("base", "--freeze-weights --train-length 64 --row-length 2x", "row length must be at most .*, 64, .* got 2x"),
        ("base", "--freeze-weights --lora r=8", "freeze weights leaves no LoRA to train. Leave one of the two out"),
        ("base", "--head-scalars --method infllm", "infllm chooses keys as it goes, and has no gradient"),
        (
            "ours",
            "--lora 8",
            "the model has a LoRA with r=4,alpha=8,.*gate=capped, and r 8 is asked for. Leave lora out",
        ),
        (
            "ours",
            "--lora full",
            "the model has a LoRA with r=4,alpha=8,.*gate=capped, and r full is asked for. Leave lora out",
        ),
        (
            "ours",
            "--lora none",
            "the model has a LoRA with r=4,alpha=8,.*gate=capped, and lora none is asked for. Leave lora out",
        ),
        (
            "ours",
            "--lora gate=hard",
            "the model has a LoRA with r=4,alpha=8,.*gate=capped, and gate hard is asked for. Leave lora out",
        ),
    ],
)
def test_settings_that_cannot_be(
    place: Path, capsys: pytest.CaptureFixture[str], model: str, more: str, message: str
) -> None:
    line = complaint(capsys, command(place, model, "refused", *more.split()))
    assert re.search(message, line), line
    assert not (place / "refused").exists()


def test_an_unknown_gate_is_wrong_usage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "base", "refused", "--gate", "soft")) == 2
    assert "'soft' is not one of 'capped'" in capsys.readouterr().err


def edited(file: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | changes))

    return damage


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def other_base(folder: Path) -> None:
    path = folder / "longwave.json"
    found = json.loads(path.read_text())
    found["base"] |= {"model": str(folder.parent / "other"), "relative": "../other"}
    path.write_text(json.dumps(found))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing: the folder is incomplete. Save the model"),
        (lambda folder: (folder / CONFIG).unlink(), f"{CONFIG} is missing: the folder is incomplete. Save the model"),
        (lambda folder: shutil.rmtree(folder / "adapter"), f"{CONFIG} is missing: the folder is incomplete."),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is missing or damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "Restore it, or save"),
        (tensors(lambda found: {name: t[..., :3].contiguous() for name, t in found.items()}), "holds other tensors"),
        (tensors(lambda found: dict(list(found.items())[1:])), f"{WEIGHTS} holds other tensors than its model has"),
        (lambda folder: (folder / CONFIG).write_text("{"), f"{CONFIG} is not valid JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), f"{CONFIG} holds no JSON object, but a list"),
        (edited(CONFIG, peft_type="LOHA"), f"{CONFIG}: peft_type is 'LOHA', longwave saved 'LORA'. Restore it"),
        (edited(CONFIG, peft_type=None), f"{CONFIG}: peft_type is None, longwave saved 'LORA'. Restore it"),
        (edited(CONFIG, use_dora=True), f"{CONFIG}: use_dora is True, longwave saved false. Restore it"),
        (edited(CONFIG, bias="all"), f"{CONFIG}: bias is 'all', longwave saved 'none'. Restore it"),
        (edited(CONFIG, r=0), f"{CONFIG}: r is 0, longwave saved a whole number >= 1. Restore it"),
        (edited(CONFIG, r="a"), f"{CONFIG}: r is 'a', longwave saved a whole number >= 1. Restore it"),
        (edited(CONFIG, r=8), f"{WEIGHTS} holds other tensors than its model has"),
        (edited(CONFIG, lora_alpha="x"), f"{CONFIG}: lora_alpha is 'x', longwave saved a number. Restore it"),
        (edited(CONFIG, target_modules=None), f"{CONFIG}: target_modules is None, longwave saved names of layers."),
        (edited(CONFIG, target_modules=["nowhere"]), "Target modules {'nowhere'} not found in the base model."),
        (edited("longwave.json", adapter={"trained_factor": 2, "gate": "soft"}), "longwave.json: unknown gate 'soft'"),
        (edited("longwave.json", adapter={"trained_factor": "a"}), "trained_factor is 'a', it must be a number."),
        (edited("longwave.json", adapter=[]), "longwave.json: adapter must be an object"),
        (edited("longwave.json", head_scalars=False), "holds other tensors than longwave.json describes"),
        (edited("longwave.json", base="x"), "longwave.json: base is 'x', it must have model and fingerprint."),
        (edited("longwave.json", base=None), "model/config.json is missing: the folder is incomplete."),
        (other_base, "was trained on other weights than those in "),
    ],
)
def test_a_damaged_folder(place: Path, capsys: pytest.CaptureFixture[str], damage: Damage, message: str) -> None:
    folder = place / "damaged"
    shutil.copytree(place / "ours", folder)
    try:
        damage(folder)
        prompt = [str(folder), "--prompt", "sheep", "--max-new-tokens", "1"]
        assert message in complaint(capsys, ["generate", *prompt])
    finally:
        shutil.rmtree(folder)


def test_a_base_on_this_machine_is_not_pushed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, ["push", str(place / "ours"), "me/model"])
    assert "names its base model by a folder of this machine" in line and "longwave.save(" in line
    longwave.save(longwave.load(place / "ours"), place / "whole")
    assert "no token" in complaint(capsys, ["push", str(place / "whole"), "me/model"])
