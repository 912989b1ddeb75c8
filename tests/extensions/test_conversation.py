"""Checkpoints with RoPE scaling in their config, from the command line: measured, continued, replaced, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.checkpoints.load import extension_of
from longwave.cli.main import main
from longwave.evaluation.lengths import doublings
from longwave.evaluation.results import read
from longwave.extensions.conversation import Conversation
from longwave.training.config import TrainConfig
from longwave.training.prepare import attach_method

L = 64
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": L, "beta_fast": 16.0}


@pytest.fixture
def scaled(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama with YaRN to 256 tokens, and its tokenizer."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4 * L, bos_token_id=0, eos_token_id=0,
        rope_parameters=YARN,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "scaled")
    tokenizer.save_pretrained(tmp_path / "scaled")
    return tmp_path / "scaled"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book. " for i in range(200)))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(4 * L)[None] % 256, use_cache=False).logits


def test_perplexity_counts_in_the_original_length(scaled: Path, book: Path, tmp_path: Path) -> None:
    assert run("perplexity", scaled, "--data", book, "--windows", 2, "--targets", 16, "-o", tmp_path / "out") == 0
    found = read(tmp_path / "out" / "perplexity.json")
    assert found["original_length"] == L
    (row,) = found["rows"]
    assert (row["label"], row["own"], row["max_factor"]) == ("yarn@static=4", True, 4.0)
    assert [(entry["length"], entry["factor"]) for entry in row["lengths"]] == [(L, 4), (2 * L, 4), (4 * L, 4)]


def test_compare_has_one_base_for_all_methods(scaled: Path, book: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("- perplexity: {windows: 2, targets: 16}\n")
    out = tmp_path / "out"
    specs = "none,own,yarn@continuous,ntk"
    assert run("compare", scaled, "--data", book, "--suite", suite, "--methods", specs, "-o", out) == 0
    rows = {row["label"]: row for row in read(out / "perplexity.json")["rows"]}
    assert list(rows) == ["none", "yarn", "yarn@continuous", "ntk"]
    values = {label: [entry["nll"] for entry in row["lengths"]] for label, row in rows.items()}
    none, own, continuous, ntk = values.values()
    assert none[0] == continuous[0] == ntk[0]  # t = 1 is the rope before the scaling
    assert own[0] != none[0]
    assert own[2] == continuous[2]  # t = 4
    assert none[2] != own[2] != ntk[2] != none[2]


def test_generate_takes_another_method_on_top_of_the_scaling(scaled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, most = "word " * 40, ("--max-new-tokens", 8, "--json")
    assert run("generate", scaled, "--prompt", text, *most) == 0
    assert json.loads(capsys.readouterr().out)["factor"] == 4.0
    assert run("generate", scaled, "--prompt", text * 2, *most, "--method", "yarn", "--to", 8 * L) == 0
    assert json.loads(capsys.readouterr().out)["factor"] == 408 / 256  # of the 256 tokens that the config speaks of
    assert run("generate", scaled, "--prompt", text * 2, *most) == 1
    error = capsys.readouterr().err
    assert "the prompt has 400 tokens and the model reads 256" in error
    assert "or extend the model: --method yarn --to TOKENS" in error
    assert run("generate", scaled, "--prompt", "a", "--to", 500) == 1
    error = capsys.readouterr().err
    assert "--to says how far a --method is to reach: give one" in error and "leave them out" not in error


def test_chat_has_all_that_the_config_speaks_of(scaled: Path) -> None:
    assert Conversation(longwave.load(scaled), PreTrainedTokenizerFast.from_pretrained(scaled)).max_length == 4 * L
    _, max_factor = extension_of(scaled)
    assert doublings(max_factor) == "1x,2x,4x"


@pytest.mark.parametrize(
    ("method", "max_factor", "name", "schedule", "original"),
    [
        ("yarn", 4, "yarn", "static=4", L),
        ("yarn", 8, "yarn", "continuous", L),  # past what static=4 is for
        ("yarn@ceiling", 4, "yarn", "ceiling", L),
        ("clex", 4, "clex", "continuous", 4 * L),
        ("ntk", 4, "ntk", "continuous", 4 * L),
    ],
)
def test_training_continues_the_method_or_takes_the_scaling_as_the_models(
    method: str, max_factor: float, name: str, schedule: str, original: int, scaled: Path
) -> None:
    plain, model = AutoModelForCausalLM.from_pretrained(scaled), longwave.load(scaled)
    config = TrainConfig.create(method=method, train_length=48, max_factor=max_factor)
    assert attach_method(model, config).original_length == original
    (rotary,) = longwave.rotaries(model)
    found = (rotary.trajectory.name, rotary.schedule.spec, rotary.trajectory.rope.original_length)
    assert found == (name, schedule, original)
    if name == "yarn":
        assert rotary.trajectory.options()["beta_fast"] == 16.0
        longwave.set_policy(model, "fixed", 4.0)
        assert (logits(model) - logits(plain)).abs().max() < 1e-5
    else:
        longwave.set_policy(model, "fixed", 1.0)
        assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(longwave.restore(model)), logits(plain))


def test_a_failed_continuation_leaves_the_model_as_it_was_loaded(scaled: Path) -> None:
    plain, model = AutoModelForCausalLM.from_pretrained(scaled), longwave.load(scaled)
    with pytest.raises(ValueError, match="yarn has no option 'slope'"):
        attach_method(model, TrainConfig.create(
            method="yarn", train_length=48, max_factor=4, options={"slope": 2}))  # fmt: skip
    assert torch.equal(logits(longwave.restore(model)), logits(plain))


def test_trained_further_it_loads_again(scaled: Path, book: Path, tmp_path: Path) -> None:
    folder = longwave.train(scaled, [book], tmp_path / "out", method="yarn", train_length=48, max_factor=4, steps=1,
                            batch_size=2, progress=False)  # fmt: skip
    settings = json.loads((folder / "longwave.json").read_text())
    assert (settings["unscaled"], settings["original_length"], settings["schedule"]) == (True, L, "static=4")
    model = longwave.load(folder)
    # What transformers makes of the inner folder, whose config has the scaling
    native = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (logits(model) - logits(native)).abs().max() < 1e-5
    assert run("export", folder, "-o", tmp_path / "export") == 0
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "export")), logits(model))


def test_exported_again(scaled: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(scaled)
    assert run("export", scaled, "-o", tmp_path / "out") == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.max_position_embeddings == 4 * L
    assert (logits(again) - logits(plain)).abs().max() < 1e-5
    assert run("export", scaled, "--factor", 2, "-o", tmp_path / "half") == 0
    model = longwave.load(scaled)
    longwave.set_policy(model, "fixed", 2.0)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.config.max_position_embeddings == 2 * L
    assert torch.equal(logits(half), logits(model))


def test_a_conversation_that_speculates_says_the_same() -> None:
    """transformers 5.23 speculates wrongly where a cache holds most of the prompt, on a plain model, too."""
    folder = Path(longwave.__file__).parent / "demo" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = []
    for more in ({}, {"prompt_lookup_num_tokens": 3}):
        talk = Conversation(model, tokenizer, do_sample=False, **more)
        said.append(
            [talk.say(text, max_new_tokens=20) for text in ("def add(a, b): return a + b", "def add(a, b, c):")]
        )
    assert said[0] == said[1]
