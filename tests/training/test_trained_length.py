"""The longest real window of a training: none is longer, and folders and records name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import longwave
from longwave.checkpoints.trained import Trained, trained_of
from longwave.cli.main import main
from longwave.evaluation.subjects import under
from longwave.training.metrics import read_metrics

SHORT = {"train_length": 192, "row_length": "1.5x", "batch_size": 4, "long_share": 0.5, "least_factor": 4, "chunks": 4}
LONG = {"train_length": 384, "row_length": 48, "batch_size": 8, "long_share": 1.0}


def told(folder: Path) -> tuple[Any, Any, Any]:
    """What training.json and longwave.json say."""
    record, settings = (json.loads((folder / name).read_text()) for name in ("training.json", "longwave.json"))
    return record["result"]["trained_length"], settings["trained_length"], settings["weights_trained_length"]


@pytest.mark.slow
def test_a_run_reads_no_longer_window_and_names_the_longest(llama, train) -> None:
    seen: list[tuple[int, ...]] = []
    handle = llama.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    folder = train(llama, steps=12, **SHORT)
    handle.remove()
    assert set(seen) == {(4, 96), (2, 192)}
    assert {row["tokens"] // row["step"] for row in read_metrics(folder / "metrics.jsonl")} == {4 * 96}
    assert told(folder) == (192, 192, 192)
    assert trained_of(llama) == trained_of(longwave.load(folder)) == Trained(192, 192)


@pytest.mark.slow
def test_what_was_drawn_counts_and_pre_training_does_too(llama, train) -> None:
    assert told(train(llama, "short", method="ntk")) == (64, 64, 64)  # rows of 48; pre-training had 64
    # micro-batches of 1 x 96 and 2 x 48 only: a window of 100 tokens fits no whole number of rows
    assert told(train(llama, "odd", **LONG | {"train_length": 100})) == (96, 96, 96)


@pytest.mark.slow
def test_a_folder_that_is_trained_further_keeps_the_longest(llama, train) -> None:
    first = train(llama, "first", steps=6, **LONG)
    longest = told(first)[0]
    assert longest > 96
    second = train(first, "second")
    assert told(second) == (longest,) * 3
    again = longwave.save(longwave.load(second), second.with_name("copy"))
    assert json.loads((again / "longwave.json").read_text())["trained_length"] == longest


@pytest.mark.slow
def test_frozen_weights_have_seen_no_more_than_before(llama, train) -> None:
    folder = train(llama, freeze_weights=True, **LONG | {"train_length": 96})
    assert told(folder) == (96, 96, 64)
    model = longwave.load(folder)
    with under(model, "clex", [64]) as own, under(model, "yarn", [64]) as other:
        assert (own.trained_length, other.trained_length) == (96, 64)
    # a new extension on them starts from what the weights have seen
    assert told(train(folder, "ntk", method="ntk")) == (64, 64, 64)


def test_an_untrained_method_has_seen_windows_of_the_original_length(llama) -> None:
    with under(llama, "ntk", [256]) as subject:
        assert subject.to_json()["trained_length"] == 64
    longwave.extend(llama, "yarn", max_factor=4, original_length=32)
    with under(llama, "yarn", [64]) as subject:
        assert subject.trained_length == 32


def older(folder: Path, **config: Any) -> Path:
    """The folder as an older version would have written it: `train_length` was the length of a row."""
    for name in ("longwave.json", "training.json"):
        value = json.loads((folder / name).read_text())
        for key in ("trained_length", "weights_trained_length"):
            value.pop(key, None)
            value.get("result", {}).pop(key, None)
        if "config" in value:
            for key in ("row_length", "least_factor"):
                del value["config"][key]
            value["config"] |= config
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"long_share": 0.0}, (64, 64)),
        ({"train_length": 100, "long_share": 0.0}, (100, 100)),
        ({"long_share": 0.5, "batch_size": 16}, (384, 384)),  # 8 x 48 is within 8 x 64
        ({"long_share": 0.5, "batch_size": 6}, (288, 288)),
        ({"long_share": 0.5, "batch_size": 16, "train_factor": 4, "freeze_weights": True}, (192, 64)),
    ],
)
def test_of_older_folders_the_settings_tell(llama, train, config: dict[str, Any], expected: tuple[int, int]) -> None:
    folder = older(train(llama, steps=1), **config)
    found = trained_of(longwave.load(folder))
    assert (found.length, found.weights) == expected


@pytest.mark.slow
def test_without_a_record_of_the_training_it_is_unknown(llama, train) -> None:
    folder = older(train(llama, steps=1))
    (folder / "training.json").unlink()
    model = longwave.load(folder)
    assert trained_of(model) == Trained(None, None)
    assert told(train(folder, "further", steps=1)) == (None, None, None)


@pytest.mark.slow
def test_a_damaged_length_is_named(llama, train) -> None:
    folder = train(llama, steps=1)
    settings = json.loads((folder / "longwave.json").read_text())
    (folder / "longwave.json").write_text(json.dumps(settings | {"trained_length": "long"}))
    with pytest.raises(ValueError, match=r"longwave\.json is damaged: trained_length is 'long' where a number"):
        longwave.load(folder)


@pytest.mark.slow
def test_a_run_that_an_older_version_began(llama, train, tmp_path) -> None:
    """Rows only: it goes on. Real windows: one line says how to start again."""
    folder = older(train(llama, steps=1))
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | {"status": "running"}))
    assert train(llama, steps=1, resume=True) == folder
    assert told(folder)[0] == 64
    older(folder, long_share=0.5)
    with pytest.raises(ValueError, match=r"of an older version, .* Start again: --overwrite --row-length 48") as no:
        train(llama, steps=1, resume=True)
    assert "\n" not in str(no.value)


@pytest.mark.slow
def test_the_command_says_it_and_marks_what_lies_beyond(llama, tokenizer, book, tmp_path, capsys) -> None:
    for part in (llama, tokenizer):
        part.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    command = [
        "train", str(tmp_path / "base"), "--data", str(book), "--train-length", "96", "--row-length", "48",
        "--long-share", "1", "--batch-size", "2", "--max-factor", "8", "--steps", "1", "--output", str(out),
        "--method", "clex",
    ]  # fmt: skip
    assert main(command) == 0
    assert "The longest window trained on has 96 tokens. Beyond, it extrapolates." in capsys.readouterr().out
    measured = tmp_path / "measured"
    arguments = [
        "--lengths",
        "1x,1.5x,2x",
        "--windows",
        "2",
        "--targets",
        "8",
        "--methods",
        "clex,none",
        "--output",
        str(measured),
    ]
    assert main(["perplexity", str(out), "--data", str(book), *arguments]) == 0
    record = json.loads((measured / "perplexity.json").read_text())
    assert [row["trained_length"] for row in record["rows"]] == [96, 96]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    (clex,) = [words for words in printed if words[:1] == ["clex"]]
    assert clex[1] == "≤1.5x"
    assert sum("*" in word for word in clex) == 1 and "*" in clex[-1]
    assert any(words[:1] == ["≤4x:"] for words in printed)


@pytest.mark.slow
def test_torch_keeps_it_with_the_model(llama, train, tmp_path) -> None:
    train(llama, **LONG | {"train_length": 96})
    torch.save(llama, tmp_path / "model.pt")
    assert trained_of(torch.load(tmp_path / "model.pt", weights_only=False)).length == 96
