"""Recipes: YAML files whose keys are the options of `longwave train`, and `--dry-run` on each that is packaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from longwave.cli.main import main
from longwave.training.config import TrainConfig
from longwave.training.machine import memory_of
from longwave.training.recipes import names, parse_recipe, read_recipe

SIZES = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY: dict[str, PreTrainedConfig] = {  # with the L of the models that the recipes name
    "meta-llama/Llama-2-7b-hf": LlamaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=4096),
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=8192),
    "EleutherAI/pythia-1.4b": GPTNeoXConfig(**SIZES, num_attention_heads=2, max_position_embeddings=2048),
    "EleutherAI/pythia-70m": GPTNeoXConfig(**SIZES, num_attention_heads=2, max_position_embeddings=2048),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_packaged_recipe_is_planned_on_a_tiny_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe(name)
    TINY[recipe.given["model"]].save_pretrained(tmp_path)
    assert recipe.about and len(f"{name}  {recipe.about}") <= 150
    assert {"data", "output", "model"} <= set(recipe.given)
    assert main(["train", str(tmp_path), "--config", name, "--dry-run", "--json", "--device-memory", "900GB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    given, devices = recipe.given, recipe.given.get("devices", 1)
    assert (
        plan["devices"] == devices
        and plan["steps"] == given["steps"]
        and plan["data"] == ([given["data"]] if isinstance(given["data"], str) else given["data"])
    )
    assert plan["tokens"] == plan["steps"] * plan["tokens_per_step"] > 0
    assert sum(each["share"] for each in plan["windows"]) == pytest.approx(1)
    assert max(each["factors"][1] for each in plan["windows"]) == given.get("train_factor", given["max_factor"])
    assert plan["fits"] and plan["memory"]["total"] == sum(v for k, v in plan["memory"].items() if k != "total")


def test_the_paper_and_others_have_the_tokens_of_their_scripts(tmp_path: Path) -> None:
    def step(name: str) -> int:
        given = read_recipe(name).given
        return given["train_length"] * given["batch_size"] * given["accumulation"] * given["devices"]

    assert step("llama2-7b-clex-4k") == step("llama2-7b-clex-16k") == 512 * 4096
    assert step("prolong") == 2**22
    assert step("lceg") * read_recipe("lceg").given["steps"] == pytest.approx(1e9, rel=0.01)


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names() and len(lines) >= 6
    assert main(["recipes", "laptop"]) == 0
    assert parse_recipe(capsys.readouterr().out, "printed").given == read_recipe("laptop").given
    assert main(["recipes", "laptop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train-length"] == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train-lenght: 4096", "recipe r.yaml: unknown key 'train-lenght'. Did you mean 'train-length'?"),
        ("steps: many", "recipe r.yaml: steps must be a whole number, got 'many'."),
        ("steps: 2.5", "recipe r.yaml: steps must be a whole number, got 2.5."),
        ("steps: true", "recipe r.yaml: steps must be a whole number, got True."),
        ("lr: fast", "recipe r.yaml: lr must be a number >= 0, got 'fast'."),
        ("precision: bf17", "recipe r.yaml: precision must be one of auto, bf16, fp32, got 'bf17'."),
        ("data: 3", "recipe r.yaml: data must be a path or a list of paths, got 3."),
        ("model: [a]", "recipe r.yaml: model must be text, got ['a']."),
        (
            "lora: off",
            "lora must be text (in YAML off and on are false and true: put the word in",
        ),
        ("loss-blocks: off", "loss blocks must be one of auto, on, off (in YAML off and on are false and true"),
        ("option: 3", "recipe r.yaml: option must hold keys with values"),
        ("device-memory: much", "recipe r.yaml: device memory must be a size such as 24GB, got 'much'."),
        ("steps: 3\nsteps: 4", "'steps' is given twice"),
        ("train-length: 3\ntrain_length: 4", "recipe r.yaml: train-length is given twice. Leave one out."),
        ("- steps", "recipe r.yaml must hold keys with values"),
        ("a: [", "recipe r.yaml is not YAML: "),
        ("", "recipe r.yaml must hold keys with values"),
    ],
)
def test_what_is_no_recipe(text: str, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    assert main(["train", "--config", "r.yaml", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) <= 2


def test_values_are_read_as_on_the_command_line() -> None:
    text = "train_length: 8\nlr: 1e-4\nrow-length: 4\ndata: book\noption: {window: 64}\nmax-factor: 2\nlog-n: null"
    assert parse_recipe(text, "r").given == {
        "train_length": 8, "lr": 1e-4, "row_length": "4", "data": ["book"], "options": {"window": 64}, "max_factor": 2,
    }  # fmt: skip
    assert [memory_of(text) for text in ("24GB", "24 GiB", "0.5g", "512MB")] == [24 * 2**30] * 2 + [2**29] * 2


@pytest.mark.slow
def test_options_come_before_the_recipe(plain: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A whole run from a recipe: what the command line gives wins, `--without` leaves keys out, paths are relative."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("".join(f"{n} sheep went up the hill. " for n in range(400)))
    Path("r.yaml").write_text(
        f"model: {plain.name}\ndata: book.txt\noutput: out\ntrain-length: 128\nmax-factor: 8\nsteps: 50\n"
        "batch-size: 2\nfreeze-weights: true\nseed: 7\ndevices: 8\n"
    )
    assert main(["train", "--config", "r.yaml", "--steps", "2", "--without", "seed", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 2
    assert "this is for 8 devices, and the run has 1. Pass --accumulation 8" in said.err
    config = json.loads(Path("out/training.json").read_text())["config"]
    assert (config["steps"], config["seed"], config["freeze_weights"], config["train_length"]) == (2, 0, True, 128)
    assert Path("out/report.html").exists()
    for wrong, message in (
        (["--config", "r.yaml", "--without", "sed"], "unknown key of recipe r.yaml 'sed'. Did you mean 'seed'?"),
        (["--without", "seed"], "--without leaves out keys of a recipe. Pass --config too."),
        (["--config", "laptoq"], "unknown recipe 'laptoq'. Did you mean 'laptop'?"),
    ):
        assert main(["train", *wrong]) == 1
        assert message in capsys.readouterr().err


def test_an_older_record_lacks_settings_and_goes_on() -> None:
    config = TrainConfig.create(train_length=128, max_factor=8)
    recorded = config.as_dict()
    for name in ("beta2", "least_lr", "lr_schedule", "stop_rise", "eval_data", "report_to"):
        del recorded[name]
    assert config.differences(recorded) == []
    other = TrainConfig.create(train_length=128, max_factor=8, beta2=0.95, eval_data="x", stop_rise=0)
    assert other.differences(recorded) == ["beta2 0.999 -> 0.95"]
