"""Options of methods on the command line: they are listed, they are taken, and records and labels keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import longwave
from longwave.attention import ATTENTIONS
from longwave.cli.main import main
from longwave.evaluation.results import read
from longwave.methods import METHODS


@pytest.mark.parametrize("name", [*METHODS, *ATTENTIONS])
def test_every_option_is_listed_with_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", name, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == name
    assert all(option["help"] for option in found["options"])
    assert main(["methods", name]) == 0
    listed = capsys.readouterr().out
    assert all(option["name"] in listed for option in found["options"])


def test_options_of_both_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "yarn+two-band"]) == 0
    listed = capsys.readouterr().out
    assert "beta_fast" in listed
    assert "window" in listed
    assert main(["methods", "two-bnd"]) == 1
    assert "Did you mean 'two-band'?" in capsys.readouterr().err


def test_rows_with_options_stand_beside_those_without(plain: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400)))
    common = ["perplexity", str(plain), "--data", str(text), "--lengths", "2x", "--windows", "2", "--targets", "16"]
    folder = tmp_path / "out"
    methods = "none,two-band,two-band:window=8"
    assert main([*common, "--methods", methods, "-o", str(folder)]) == 0
    rows = read(folder / "perplexity.json")["rows"]
    assert [row["label"] for row in rows] == ["none", "two-band", "two-band:window=8"]
    assert rows[2]["options"] == {"window": 8}
    assert "options" not in rows[1]
    assert rows[1]["lengths"] != rows[2]["lengths"]
    other = tmp_path / "other"
    assert main([*common, "--methods", "none,two-band", "--option", "window=8", "-o", str(other)]) == 0
    again = read(other / "perplexity.json")["rows"]
    assert [row["label"] for row in again] == ["none", "two-band:window=8"]
    assert again[1]["lengths"] == rows[2]["lengths"]


@pytest.mark.parametrize("command", ["generate", "chat", "tasks", "perplexity", "export"])
def test_an_option_that_no_method_has(
    command: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "generate": ["--prompt", "a b"],
        "tasks": ["--samples", str(tmp_path)],
        "perplexity": ["--data", str(Path(__file__))],
        "export": ["-o", str(tmp_path / "x")],
    }
    (tmp_path / "samples.jsonl").write_text("{}\n")
    flag = "--methods" if command == "perplexity" else "--method"
    arguments = [command, str(plain), flag, "yarn", "--option", "windw=3", *more.get(command, [])]
    assert main(arguments) == 1
    assert "yarn has no option 'windw'" in capsys.readouterr().err
    assert main([command, str(plain), "--option", "beta_fast=3", *more.get(command, [])]) == 1
    assert "method" in capsys.readouterr().err


def test_options_of_generate_reach_the_model(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(plain), "--prompt", "abc " * 30, "--max-new-tokens", "2", "--method", "two-band"]
    assert main([*arguments, "--option", "window=900"]) == 1
    assert "the window of two-band must be shorter" in capsys.readouterr().err
    assert main([*arguments, "--option", "window=8"]) == 0


def test_extend_takes_options_in_the_name(plain: Path) -> None:
    model = longwave.extend(AutoModelForCausalLM.from_pretrained(plain), "two-band:window=8", max_factor=4)
    assert longwave.extension(model).attention.options()["window"] == 8
    longwave.restore(model)
    with pytest.raises(ValueError, match="option window is 8 in the name of the method, and 9 beside it"):
        longwave.extend(model, "two-band:window=8", max_factor=4, window=9)


@pytest.mark.parametrize(("method", "options"), [("string", {"zzz": 1}), ("ms-poe", {"ratio": 0})])
def test_an_unknown_option_is_told_before_distances(plain: Path, method: str, options: dict[str, int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain)
    with pytest.raises(ValueError, match=f"{method} has no option"):
        longwave.extend(model, method, max_factor=16, **options)


def test_none_below_two_band(plain: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain)
    with pytest.raises(ValueError, match="two-band turns far keys at other frequencies, which none does not have"):
        longwave.extend(model, "none+two-band", max_factor=16)


@pytest.mark.parametrize("length", [64, 100, 128, 256, 300, 512, 1000, 4096, 32768])
def test_string_reaches_1_3_times_l(length: int) -> None:
    method = ATTENTIONS["string"].create(original_length=length, max_factor=1.3)
    assert method.factor(1.3) == 1


def test_an_extension_shows_what_is_below_an_attention_method(plain: Path) -> None:
    model = longwave.extend(AutoModelForCausalLM.from_pretrained(plain), "quest", max_factor=4)
    assert repr(longwave.extension(model)).startswith("Extension(quest@continuous above yarn, L=64")


@pytest.mark.parametrize("command", ["perplexity", "report"])
def test_an_output_that_cannot_be_created(
    command: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400)))
    given = {
        "perplexity": [
            str(plain),
            "--data",
            str(text),
            "--windows",
            "2",
            "--lengths",
            "2x",
            "--methods",
            "none",
            "-o",
            "/proc/foo",
        ],
        "report": ["--model", str(plain), "-o", "/proc/foo/x.html"],
    }
    assert main([command, *given[command]]) == 1
    error = capsys.readouterr().err
    assert "error: cannot write to /proc/foo" in error
    assert "No such file or directory. Choose another output." in error


def test_save_where_nothing_can_be_written(plain: Path) -> None:
    model = longwave.extend(AutoModelForCausalLM.from_pretrained(plain), "yarn", max_factor=4)
    with pytest.raises(ValueError, match="cannot write to /proc/xx: "):
        longwave.save(model, "/proc/xx")
    with pytest.raises(ValueError, match=r"pass --overwrite \(in Python overwrite=True\)"):
        longwave.save(model, plain)


def test_a_prompt_that_is_longer_than_the_method_reaches(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "long.txt"
    prompt.write_text("abc " * 400)
    assert main(["generate", str(plain), "--method", "two-band", "--prompt-file", str(prompt)]) == 1
    assert "Shorten it, or let the method reach farther: --to TOKENS." in capsys.readouterr().err


def test_positions_out_of_range_are_called_positions(plain: Path) -> None:
    model = longwave.extend(AutoModelForCausalLM.from_pretrained(plain), "two-band", max_factor=4)
    ids = torch.ones(1, 10, dtype=torch.long)
    with pytest.raises(ValueError, match="position 509 is not among the first 256 = max_factor 4 x 64"):
        model(ids, position_ids=torch.arange(500, 510)[None])


def test_what_an_export_of_both_methods_says(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(plain), "--method", "yarn+dca", "-o", str(tmp_path / "x")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "hf cannot express yarn+dca: an engine alone scales frequencies. For vLLM" in error
