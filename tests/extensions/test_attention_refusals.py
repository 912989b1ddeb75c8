"""Bad input of attention methods: one line that says what came, what is allowed, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import longwave
from longwave.cli.main import main
from longwave.extensions.handle import find_extension
from tests.tiny import tiny_model

L = 64


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "two-band",
            {"window": 48},
            "the window of two-band must be shorter than its reach of 0.75 x 64 tokens",
        ),
        ("two-band", {"window": 0}, "window of two-band must be at least 1, got 0"),
        ("two-band", {"window": 1.5}, "window of two-band must be a whole number, got 1.5"),
        ("leaky-rerope", {"reach": 0.25}, "the window of leaky-rerope must be shorter than its reach of 0.25 x 64"),
        ("two-band", {"mass": -1}, "mass of two-band must be a number >= 0, got -1"),
        ("two-band", {"windw": 8}, "two-band has no option 'windw'. Did you mean"),
        ("yarn+dca", {"beta": 3}, "yarn+dca has no option 'beta'"),
        ("yarn", {"window": 8}, "yarn has no option 'window'"),
        ("dca+two-band", {}, "'dca+two-band' names two attention methods. Write METHOD[@SCHEDULE][+ATTENTION]"),
        ("yarn+dca+string", {}, "'yarn+dca+string' names two attention methods"),
        ("two-bnd", {}, "unknown method 'two-bnd'. Did you mean 'two-band'?"),
        ("yarn+dcaa", {}, "unknown attention method 'dcaa'. Did you mean 'dca'?"),
        ("yarn+", {}, "'yarn+' names nothing after the +."),
        ("yarn+ntk", {}, "'yarn+ntk' names two scaling methods."),
        ("string", {}, "string has distances of up to 237 at 4 x 64 tokens, more than the model knows"),
    ],
)
def test_what_cannot_be_put_on(llama: LlamaForCausalLM, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        longwave.extend(llama, method, max_factor=4, **options)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert find_extension(llama) is None


@torch.no_grad()
def test_what_a_forward_refuses(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "two-band", max_factor=4)
    ids = torch.randint(1, 256, (1, 200))
    packed = torch.cat([torch.arange(120), torch.arange(80)])[None]
    with pytest.raises(ValueError, match=r"two-band takes one sequence in each row, and rows were packed.*own row"):
        llama(ids, position_ids=packed)
    square = torch.ones(1, 1, 200, 200, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"needs an attention mask of two axes.*got one of 4 axes.*padding alone"):
        llama(ids, attention_mask=square)
    llama(ids[:, :L], attention_mask=square[..., :L, :L])  # within L the model is the plain one


@pytest.mark.parametrize("model_type", ["deepseek_v2", "gemma2", "gpt_oss", "mamba"])
def test_families_that_are_refused(model_type: str) -> None:
    model = tiny_model(model_type)
    with pytest.raises(ValueError) as refused:
        longwave.extend(model, "two-band", max_factor=4)
    assert "\n" not in str(refused.value)
    assert find_extension(model) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("perplexity", "--methods", "dca+two-band"), "'dca+two-band' names two attention methods"),
        (("perplexity", "--methods", "none,yarn+dcaa"), "unknown attention method 'dcaa'. Did you mean 'dca'?"),
        (("perplexity", "--methods", "clex+two-band"), "clex needs trained weights, and this model has none"),
        (("perplexity", "--methods", "string", "--lengths", "1x,4x"), "string has distances of up to"),
        (("generate", "--method", "two-bnd"), "unknown method 'two-bnd'. Did you mean 'two-band'?"),
        (("generate", "--method", "yarn+dca+string"), "names two attention methods"),
        (("export", "--method", "two-band"), "hf cannot express two-band: an engine alone scales frequencies"),
        (
            ("export", "--method", "yarn+dca", "--target", "gguf"),
            "gguf cannot express yarn+dca: an engine alone scales",
        ),
        (("train", "--method", "yarn+dcaa"), "unknown attention method 'dcaa'. Did you mean 'dca'?"),
        (
            ("train", "--method", "two-band", "--option", "windw=8"),
            "two-band has no option 'windw'. Did you mean 'window'?",
        ),
        (("train", "--method", "two-band", "--option", "window=80"), "the window of two-band must be shorter than its"),
    ],
)
def test_the_command_line_says_it_in_one_line(
    arguments: tuple[str, ...], message: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    needed = {
        "perplexity": ["--data", str(text), "-o", str(tmp_path / "out")],
        "generate": ["--prompt", "abc"],
        "export": ["--factor", "4", "-o", str(tmp_path / "out")],
        "train": ["--data", str(text), "--train-length", "128", "--max-factor", "4", "-o", str(tmp_path / "out")],
    }[command]
    assert main([command, str(plain), *options, *needed]) == 1
    error = capsys.readouterr().err
    (line,) = [each for each in error.splitlines() if "error:" in each]
    assert message in line and "Traceback" not in error
    assert AutoModelForCausalLM.from_pretrained(plain) is not None  # the model's folder is as it was
