"""The demo: its split of the text, its base model, and that a restarted run goes on where it stopped."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longwave.cli.main import main
from longwave.demo.corpus import stdlib_files, write_corpus
from longwave.demo.journal import Journal
from longwave.demo.plan import ROWS, DemoSettings
from longwave.demo.run import BASE, run_demo
from longwave.demo.summary import comparisons, show
from longwave.evaluation.registry import EVALUATIONS
from longwave.evaluation.results import Curve, read
from longwave.evaluation.statistics import Interval
from longwave.files import read_json
from longwave.report.tables import curve_table

TINY = DemoSettings(max_factor=2, steps=2, batch_size=2, lengths=("1x", "2x"), windows=3, trials=2, text=5_000)


def quiet() -> Console:
    """A console that keeps what it is told for `export_text`."""
    return Console(width=80, record=True, file=io.StringIO())


def test_splits_are_disjoint_and_stable() -> None:
    train, heldout = set(stdlib_files("train")), set(stdlib_files("heldout"))
    assert not train & heldout
    assert 0.05 < len(heldout) / len(train | heldout) < 0.2
    # The base model was trained on one side of this split: another rule would test it on what it has seen.
    names = {path.name for path in heldout if path.parent.name != "asyncio"}
    assert {"ast.py", "random.py", "decimal.py"} <= names
    assert not {"argparse.py", "typing.py", "enum.py"} & names
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-3:-1]) for path in train | heldout)


def test_corpus_is_a_file_a_line(tmp_path: Path) -> None:
    written = write_corpus(tmp_path / "text", 50_000)
    rows = [json.loads(line) for line in written["train"].read_text("utf-8").splitlines()]
    assert sum(len(row["text"]) for row in rows[:-1]) < 50_000 <= sum(len(row["text"]) for row in rows)
    assert any("def " in row["text"] for row in rows)
    assert not {row["file"] for row in rows} & {json.loads(line)["file"] for line in written["heldout"].open()}


def test_a_step_runs_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def journal(settings: dict[str, Any], **options: Any) -> Journal:
        return Journal(tmp_path / "out", settings, steps=1, console=quiet(), **options)

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"answer": len(calls)}

    assert journal({"a": 1}).step("s", "a step", compute) == {"answer": 1}
    assert journal({"a": 1}).step("s", "a step", compute) == {"answer": 1}
    with pytest.raises(ValueError, match=r"other settings.*--overwrite"):
        journal({"a": 2})
    assert journal({"a": 2}, overwrite=True).step("s", "a step", compute) == {"answer": 2}


def test_a_failed_step_runs_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {}, steps=1, console=quiet())
    with pytest.raises(ZeroDivisionError):
        journal.step("s", "a step", lambda: 1 // 0)
    assert journal.step("s", "a step", lambda: 1) == 1


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        Journal(tmp_path, {}, steps=1, console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_whole_demo_and_its_second_start(base: Path, tmp_path: Path) -> None:
    output, console = tmp_path / "out", quiet()
    result = run_demo(output, TINY, base=base, console=console)
    labels = [row.label for row in ROWS]
    for name in ("perplexity", "passkey"):
        assert [row["label"] for row in read(output / f"{name}.json")["rows"]] == labels
    rows = {row["label"]: row["lengths"] for row in result["perplexity"]["rows"]}
    assert [entry["length"] for entry in rows["two-band"]] == [128, 256]
    assert len({rows[label][1]["ppl"] for label in labels}) == len(labels)
    # Nothing is lost within the trained length, whatever the extension learned. Full fine-tuning loses or gains there.
    assert len({rows[label][0]["ppl"] for label in labels[:5]}) == 1 < len({rows[label][0]["ppl"] for label in labels})
    for name in ("scalars", "recipe", "clex-tuned"):
        assert (output / name / "longwave.json").exists()
        assert (output / name / "model").exists() == (name == "clex-tuned"), "weights that did not change are named"
    settings = read_json(output / "recipe/training.json")["config"]
    assert (settings["train_length"], settings["row_length"], settings["batch_size"]) == (256, "auto", 1)

    show(result, output, console)
    text = console.export_text()
    assert all(label in text for label in labels)
    assert "…" not in text.partition("Took")[0]
    assert (output / "perplexity.png").stat().st_size > 10_000

    # Killed after the fifth of ten steps: the rest is done again, the same, and the five are not.
    done = sorted((output / "steps").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    kept = {path: path.stat().st_mtime_ns for path in done[:5]}
    for path in done[5:]:
        path.unlink()
    again = run_demo(output, TINY, base=base, console=quiet())
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert again["perplexity"]["rows"] == result["perplexity"]["rows"]
    assert again["passkey"]["rows"] == result["passkey"]["rows"]

    # Equal in settings, data and targets to what the commands write: one picture holds both.
    asked = [str(base), "--lengths", ",".join(TINY.lengths), "--methods", "linear"]
    heldout = ["--data", str(output / "text" / "heldout.jsonl"), "--windows", str(TINY.windows)]
    for command, more in (("perplexity", heldout), ("passkey", ["--trials", str(TINY.trials)])):
        assert main([command, *asked, *more, "-o", str(tmp_path / command)]) == 0
        assert main(["plot", str(output / f"{command}.json"), f"again={tmp_path / command}"]) == 0

    ratios = comparisons(result["perplexity"])
    expected = rows["scalars"][1]["ppl"] / rows["unscaled"][0]["ppl"]
    assert math.isclose(ratios["scalars"][1].value, expected, rel_tol=1e-9)
    assert ratios["scalars + LoRA"][0].value == 1


@pytest.mark.slow
def test_overwrite_starts_over(base: Path, tmp_path: Path) -> None:
    run_demo(tmp_path, TINY, base=base, console=quiet())
    made = [tmp_path / name for name in ("steps/text.json", "scalars/training.json", "recipe/training.json")]
    (tmp_path / "mine.txt").touch()
    for settings in (TINY, replace(TINY, steps=3)):
        if settings != TINY:
            with pytest.raises(ValueError, match="other settings"):
                run_demo(tmp_path, settings, base=base, console=quiet())
        before = [path.stat().st_mtime_ns for path in made]
        run_demo(tmp_path, settings, base=base, overwrite=True, console=quiet())
        assert all(path.stat().st_mtime_ns > time for path, time in zip(made, before, strict=True))
        assert read_json(made[-1])["result"]["steps"] == settings.steps
    assert (tmp_path / "mine.txt").exists()


def test_shipped_base_model() -> None:
    config, tokenizer = AutoConfig.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    assert (config.model_type, config.max_position_embeddings, config.head_dim) == ("llama", 256, 64)
    assert config.hidden_size % 32 == 0 and config.intermediate_size % 32 == 0
    assert config.rope_parameters["rope_theta"] == 200
    assert tokenizer.convert_ids_to_tokens(tokenizer("20240")["input_ids"]) == list("20240")
    text = "def f(x):\n\treturn x ** 2  # naïve, π\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8 * 2**20
    assert "pretrain_demo.py" in (BASE / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_quick_demo_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    assert "against unscaled, 1x" in capsys.readouterr().out
    assert main(["demo", "--quick", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("kept from before") == 10
    rows = json.loads(captured.out)["rows"]
    unscaled = next(row["perplexity"] for row in rows if row["label"] == "unscaled")
    learned = next(row["perplexity"] for row in rows if row["label"] == "scalars + LoRA")
    assert unscaled["1024"] > 3 * unscaled["256"]  # the base model collapses beyond its window
    assert learned["1024"] < learned["256"] == unscaled["256"]  # and ours gains there, with nothing lost within it


def test_a_table_of_five_lengths_fits_80_columns() -> None:
    lengths, values = (256, 512, 1024, 2048, 4096), (5.7, 84.3, 92.0, 1234.5, 120.0)
    intervals = tuple(Interval(value, 0.9 * value, 1.1 * value) for value in values)
    table = curve_table([Curve("CLEX, all weights", lengths, intervals)], EVALUATIONS["perplexity"].quantity, 256)
    table.add_row("passkeys found, of 10", *["-10.2 ±11%", "+0.6 ±1.2%"], *["77.8 ±10.3"] * 3)
    console = quiet()
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "1,234 ±123" in text
    assert "-10.2 ±11%" in text
