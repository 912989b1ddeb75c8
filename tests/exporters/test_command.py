"""`longwave export` from the command line, with good and bad input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import longwave
from longwave.cli.main import main
from longwave.exporters import get_exporter
from longwave.exporters.run import export
from longwave.io import read_json


def test_the_folder_is_complete(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "--factor", "3", "-o", str(out), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["factor"], told["length"]) == (3.0, 192)
    assert told["agreement"]["equal"] == told["agreement"]["total"] and told["agreement"]["max_difference"] == 0
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    card = (out / "README.md").read_text()
    for part in (
        "vllm serve out --max-model-len 192",
        "sglang",
        "`clex`",
        "greedy tokens equal",
        "length factor t | 3",
    ):
        assert part in card
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_perplexity_record_goes_into_the_card(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    results = tmp_path / "results"
    asked = f"perplexity {trained} --data {text} --lengths 1x,2x --windows 4 --targets 32 -o {results}"
    assert main(asked.split()) == 0
    record = read_json(results / "perplexity.json")
    done = export(trained, tmp_path / "out", results=[results / "perplexity.json"])
    ppl = record["rows"][0]["lengths"][1]["ppl"]
    assert f"| {ppl:.4g} |" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "5"], "factor 5 is not within 1 to 4"),
        (["--factor", "0.5"], "factor 0.5 is not within 1 to 4"),
        (["--length", "999"], "length 999 is not within 1 to 256 tokens"),
        (["--length", "128", "--factor", "2"], "not both"),
        (["--to", "ggfu"], "unknown export target 'ggfu'"),
        (["--quantize", "q8_0"], "hf has no quantization 'q8_0'"),
        (["--method", "yarn"], "has its own extension"),
    ],
)
def test_refused(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "-o", str(out), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_existing_output_stays(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export(trained, out)
    assert (out / "mine.txt").read_text() == "mine"
    assert export(trained, out, overwrite=True).folder == out
    assert (out / "config.json").is_file()


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _cut(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _without(folder, "tokenizer.json"), "holds no tokenizer"),
        (lambda folder: _cut(folder, "model/model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: _without(folder, "model/model.safetensors"), "neither model.safetensors nor"),
        (lambda folder: _without(folder, "longwave.json"), "longwave.json is missing"),
        (lambda folder: _cut(folder, "longwave.safetensors"), "longwave.safetensors is damaged"),
        (lambda folder: _cut(folder, "model/config.json"), "config.json is not valid JSON"),
    ],
)
def test_a_damaged_source_is_named(spoil, message: str, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spoil(trained)
    with pytest.raises(ValueError, match=message):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").rename(plain / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00001-of-00002.safetensors lacks a"):
        export(plain, tmp_path / "out", method="ntk")
    index["weight_map"].pop("a")
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00002-of-00002.safetensors is missing"):
        export(plain, tmp_path / "out", method="ntk")


def test_a_plain_model_needs_a_method(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain model\. Say what to export it with"):
        export(plain, tmp_path / "out")
    with pytest.raises(ValueError, match="needs trained weights"):
        export(plain, tmp_path / "out", method="clex")


def test_an_untrained_clex_is_refused(llama, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = longwave.save(longwave.extend(llama, "clex", max_factor=4), tmp_path / "own", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has not been trained"):
        export(folder, tmp_path / "out")


def test_a_model_without_rotary_module_is_refused(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="no rotary module"):
        export(tmp_path / "gpt2", tmp_path / "out", method="yarn")


def test_a_disk_too_small(trained: Path, tmp_path: Path) -> None:
    """A real file system of 64 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(ValueError, match="Make room"):
            export(trained, small / "out")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_targets_are_looked_up_by_name() -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'hf'\?"):
        get_exporter("HF")
