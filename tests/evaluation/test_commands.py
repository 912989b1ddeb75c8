"""`longwave perplexity` and `longwave passkey` from the command line, on a small random model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from longwave.cli.main import main
from longwave.evaluation.base import Inputs
from longwave.evaluation.passkey import PasskeyEvaluation
from longwave.evaluation.results import LONGPPL, NEEDLE, PASSKEY, PERPLEXITY, read
from longwave.extensions.handle import find_extension


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book. " for i in range(60)))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_perplexity_of_a_plain_model(
    plain: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("perplexity", plain, "--data", book, "--lengths", "1x,200", "--targets", 32, "-o", out) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("none", "linear", "ntk", "yarn", "3.12x", "200", "±"))
    assert (out / "perplexity.png").stat().st_size > 10_000
    found = read(out / "perplexity.json", PERPLEXITY)
    assert found["model"]["path"] == str(plain)
    assert list(found["data"]) == [str(book)]
    assert found["settings"] == {"protocol": "same-targets", "windows": None, "targets": 32, "stride": 256,
                                 "tokens": found["settings"]["tokens"]}  # fmt: skip
    assert [row["label"] for row in found["rows"]] == ["none", "linear", "ntk", "yarn"]
    first, second = found["rows"][0]["lengths"]
    assert (first["length"], second["length"], second["factor"]) == (64, 200, 200 / 64)
    assert first["ends"] == second["ends"]
    assert len(first["nll"]) == len(first["ends"]) == first["windows"]
    # t = 1 is the plain model, whatever the method.
    assert all(row["lengths"][0]["nll"] == first["nll"] for row in found["rows"])


def test_perplexity_of_a_result_folder(
    trained: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("perplexity", trained, "--data", book, "--lengths", "2x", "--windows", 4, "--json")
    assert run(*arguments, "-o", tmp_path / "a") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["label"], row["own"], row["log_n"], row["max_factor"]) == ("clex", True, 1.0, 4.0)
    assert run(*arguments, "-o", tmp_path / "b", "--methods", "none,clex,ntk@ceiling") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["label"], r["own"]) for r in rows] == [("none", False), ("clex", True), ("ntk@ceiling", False)]
    assert rows[1]["lengths"] == row["lengths"]


def test_protocols_of_others_and_loss_by_position(
    plain: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "books.jsonl"
    lines = ["too short", *(f"{i} {book.read_text()}"[: 300 + i] for i in range(3))]
    books.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    common = ("perplexity", plain, "--data", books, "--lengths", "2x", "--methods", "ntk", "--by-position", 4, "--json")
    assert run(*common, "--protocol", "truncate", "-o", tmp_path / "a") == 0
    found = json.loads(capsys.readouterr().out)
    (entry,) = found["rows"][0]["lengths"]
    assert entry["ends"] == [10 + 128, 10 + 301 + 128, 10 + 301 + 302 + 128]  # each document and an end of text
    assert entry["tokens"] == [127] * 3
    assert [(each["start"], each["tokens"]) for each in entry["by_position"]] == [(0, 93), (32, 96), (64, 96), (96, 96)]
    assert set(found["settings"]) == {"protocol", "windows", "targets", "stride", "tokens"}
    assert run(*common, "--protocol", "chunked-cache", "-o", tmp_path / "b") == 0
    found = json.loads(capsys.readouterr().out)
    (entry,) = found["rows"][0]["lengths"]
    assert found["settings"]["chunk"] == 64
    assert set(entry["tokens"]) == {126}
    assert run(*common[:-1], "--protocol", "chunked-cache", "--chunk", 50, "-o", tmp_path / "c") == 0
    assert "chunks of 50 tokens through a cache, 7 windows" in capsys.readouterr().out


def test_needle(plain: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ("needle", plain, "--data", book, "--lengths", "4x", "--trials", 6, "--depths", 3, "-o", out)
    assert run(*arguments, "--methods", "none,ntk", "--question", "And the number of {city}?") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line in ("none ≤1x", "ntk ≤1x", "0 % 0 %", "50 % 0 %", "100 % 0 %")] == [
        "none ≤1x", "0 % 0 %", "50 % 0 %", "100 % 0 %", "ntk ≤1x", "0 % 0 %", "50 % 0 %", "100 % 0 %",
    ]  # fmt: skip
    found = read(out / "needle.json", NEEDLE)
    assert list(found["data"]) == [str(book)]
    assert found["settings"] == {"keys": 1, "needle": "The magic number of {city} is {key}.", "trials": 6, "depths": 3,
                                 "question": "And the number of {city}?"}  # fmt: skip
    (entry,) = found["rows"][1]["lengths"]
    assert (entry["length"], entry["factor"], entry["trials"], entry["rate"]) == (256, 4.0, 6, 0.0)
    assert [each["depth"] for each in entry["by_depth"]] == [0.0, 0.5, 1.0]
    assert (out / "needle.png").stat().st_size > 10_000
    assert run("plot", out / "needle.json", "-o", tmp_path / "map.png") == 0
    assert (tmp_path / "map.png").stat().st_size > 10_000
    for change, message in (
        (("-o", out), "is not empty"),
        (("-o", tmp_path / "b", "--lengths", "100x"), "the haystack has 1249 tokens, fewer than the "),
        (
            ("-o", tmp_path / "b", "--needle", "It is 7."),
            "the needle must use {key}, and may use {city}, got 'It is 7.'",
        ),
        (("-o", tmp_path / "b", "--depths", "100"), "the haystack has 60 sentences, too few for 100 depths"),
    ):
        assert run(*arguments, *change) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") <= 2
    assert not (tmp_path / "b").exists()


def test_passkey(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ("passkey", plain, "--lengths", "4x", "--trials", 10, "--methods", "ntk", "-o", out)
    assert run(*arguments) == 0
    assert "0 %*0–28" in " ".join(capsys.readouterr().out.split())
    found = read(out / "passkey.json", PASSKEY)
    assert found["seed"] == 0
    assert found["settings"] == {"keys": 1, "template": "short", "trials": 10, "depths": 10}
    assert (out / "passkey.png").exists()
    assert run(*arguments) == 1
    assert run(*arguments, "--overwrite", "--seed", 1) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--methods", "nkt"), "unknown method 'nkt'. Did you mean 'ntk'?"),
        (("--methods", "clex"), "clex needs trained weights, and this model has none"),
        (("--methods", ","), "no methods given"),
        (("--lengths", "2y"), "bad length '2y'"),
        (("--lengths", "1000x"), "fewer than one window of 64000"),
        (("--windows", "9999"), "room for"),
        (("--device", "toaster"), "device 'toaster' cannot be used"),
        (("--targets", "64"), "must exceed the 64 targets"),
        (("--by-position", "4"), "protocol same-targets has no loss by position"),
    ],
)
def test_bad_input_is_one_line(
    plain: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    common = ("perplexity", plain, "--data", book, "--lengths", "1x", "--targets", 16, "-o", tmp_path / "o")
    assert run(*common, *change) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") <= 2
    assert captured.out == ""
    assert not (tmp_path / "o").exists()


def test_beyond_the_maximum_of_a_result_folder(
    trained: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("perplexity", trained, "--data", book, "--lengths", "1x,8x", "-o", tmp_path / "o") == 1
    assert "length 512 is beyond the maximum of 256 tokens (4 x 64)" in capsys.readouterr().err


def test_missing_things(plain: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("perplexity", plain, "--data", tmp_path / "nothing.txt") == 1
    assert "nothing.txt does not exist" in capsys.readouterr().err
    assert run("perplexity", tmp_path / "no-model", "--data", book) == 1
    assert "no-model" in capsys.readouterr().err
    assert run("perplexity", plain) == 2
    assert run("perplexity", plain, "--data", book, "--protocol", "chunks") == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run("perplexity", plain, "--data", book, "-o", tmp_path / "full") == 1
    assert "is not empty. Choose another or pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["perplexity", "passkey", "needle"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"longwave {command} MODEL" in text
    assert "--lengths" in text


def test_plot_of_two_models_and_of_two_runs(
    plain: Path, trained: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", book, "--lengths", "1x,2x", "--targets", 32]
    for model, method, out in ((plain, "ntk", "a"), (trained, "clex", "b")):
        assert run("perplexity", model, *options, "--methods", method, "-o", tmp_path / out) == 0
    assert run("perplexity", plain, *options, "--methods", "ntk", "--protocol", "overlap", "-o", tmp_path / "c") == 0
    capsys.readouterr()
    picture = tmp_path / "both.png"
    assert run("plot", f"before={tmp_path / 'a'}", f"after={tmp_path / 'b' / 'perplexity.json'}", "-o", picture) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("before", "after", "1x", "2x", "±"))
    assert picture.stat().st_size > 10_000
    assert run("plot", tmp_path / "a", tmp_path / "a") == 0
    assert "ntk (2 runs)" in capsys.readouterr().out
    for arguments, message in (
        ([tmp_path / "a", tmp_path / "c"], "the records differ in their settings (protocol same-targets and overlap)"),
        ([tmp_path / "a", "-o", picture], "both.png exists"),
        ([tmp_path / "a", "-o", tmp_path / "x.bmp"], "must end in .png, .pdf or .svg"),
        ([tmp_path / "absent"], "absent does not exist"),
        ([tmp_path], "holds no record"),
        ([book], "is not valid JSON"),
    ):
        assert run("plot", *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    mixed = tmp_path / "new" / "folder" / "mixed.svg"
    assert run("plot", tmp_path / "a", f"other={tmp_path / 'c'}", "--force", "-o", mixed) == 0
    assert mixed.stat().st_size > 10_000


def test_a_figure_of_an_earlier_record_does_not_stay(plain: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("perplexity", plain, "--data", book, "--lengths", "2x", "--windows", 2, "--methods", "none", "-o", out)
    assert run(*asked, "--protocol", "overlap", "--by-position", 4) == 0
    assert (out / "perplexity-by-position.png").exists()
    assert run(*asked, "--protocol", "overlap", "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["perplexity.json", "perplexity.png"]


def test_a_command_that_was_stopped_goes_on(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had measured lies hidden in the output folder until the record is written."""
    out, real = tmp_path / "out", PasskeyEvaluation.measure
    arguments = ("passkey", plain, "--lengths", "3x", "--trials", 4, "--methods", "none,ntk", "-o", out)
    stops: list[BaseException] = [KeyboardInterrupt(), ValueError("the device is gone.")]
    measured = []

    def measure(self: PasskeyEvaluation, inputs: Inputs, *rest: Any) -> Any:
        if find_extension(inputs.model).method == "ntk" and stops:
            raise stops.pop(0)
        measured.append(inputs.lengths)
        return real(self, inputs, *rest)

    monkeypatch.setattr(PasskeyEvaluation, "measure", measure)
    assert run(*arguments) == 130
    assert "interrupted; the same command goes on, 1 of 2 cells are kept" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".unfinished"]
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert "1 of 2 cells were finished before" in error
    assert (
        "stopped at ntk; 1 of 2 cells are kept, and the same command goes on there\nerror: the device is gone." in error
    )
    assert run(*arguments) == 0
    assert len(measured) == 2
    assert sorted(path.name for path in out.iterdir()) == ["passkey.json", "passkey.png"]
    found = read(out / "passkey.json", PASSKEY)
    assert [row["label"] for row in found["rows"]] == ["none", "ntk"]
    assert "cells" not in found and all("model" not in row for row in found["rows"])
    assert run(*arguments) == 1
    assert "is not empty" in capsys.readouterr().err


def test_nothing_is_left_of_a_command_that_measured_nothing(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("the device is gone.")

    monkeypatch.setattr(PasskeyEvaluation, "measure", fails)
    out = tmp_path / "out"
    assert run("passkey", plain, "--lengths", "3x", "--trials", 4, "--methods", "none", "-o", out) == 1
    assert capsys.readouterr().err == "stopped at none\nerror: the device is gone.\n"
    assert not out.exists()


def test_two_commands_do_not_measure_into_one_folder(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("passkey", plain, "--lengths", "3x", "--trials", 4, "--methods", "none", "-o", out)
    (out / ".unfinished").mkdir(parents=True)
    with FileLock(out / ".unfinished" / "lock"):
        assert run(*arguments) == 1
    assert "another process measures into" in capsys.readouterr().err
    assert run(*arguments) == 0


def test_longppl_has_a_command(
    plain: Path, trained: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("longppl", reason="needs the extra `eval`")
    common = ("longppl", plain, "--data", book, "--lengths", "2x", "--methods", "none", "-o", tmp_path / "out")
    assert run(*common) == 1
    assert "LongPPL needs an evaluator" in capsys.readouterr().err
    asked = ("--evaluator", trained, "--trunc-len", 32, "--sliding-window", 31, "--alpha", -9, "--beta", -99)
    assert run(*common, *asked) == 0
    found = read(tmp_path / "out" / "longppl.json", LONGPPL)
    assert (found["settings"]["trunc_len"], found["settings"]["alpha"]) == (32, -9.0)
    assert found["rows"][0]["lengths"][0]["key_tokens"] > 0


TYPOS = {
    "lengths": ("passkey", "MODEL", "--lengths", "2y"),
    "methods": ("passkey", "MODEL", "--methods", ","),
    "batch": ("passkey", "MODEL", "--tokens-per-batch", "0"),
    "setting": ("longppl", "MODEL", "--data", "absent", "--alpha", "nan"),
    "suite": ("evaluate", "MODEL", "--suite", "quik"),
    "tasks": ("tasks", "MODEL"),
    "limit": ("tasks", "MODEL", "--tasks", "arc_easy", "--limit", "0"),
    "samples": ("tasks", "MODEL", "--samples", "absent"),
    "report": ("report", "--model", "MODEL", "--methods", ","),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_wrong_value_is_told_before_anything_slow_is_imported(typo: str, plain: Path, tmp_path: Path) -> None:
    code = "import sys; from longwave.cli.main import main; code = main(sys.argv[1:])\n"
    code += "print(code, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    arguments = [str(plain) if part == "MODEL" else part for part in TYPOS[typo]]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.stdout == "1 []\n", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "default"),
    [("passkey", "passkey-plain/x"), ("evaluate", "evaluate-plain/x"), ("tasks", "tasks-plain/x"),
     ("report", "report.html")],
)  # fmt: skip
def test_a_default_output_that_is_full_hides_no_other_mistake(
    command: str, default: str, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / default).parent.mkdir(exist_ok=True)
    (tmp_path / default).touch()
    (tmp_path / "suite.yaml").write_text("- passkey: {trials: 2}\n")
    monkeypatch.chdir(tmp_path)
    given = {
        "passkey": (plain, "--methods"), "evaluate": (plain, "--suite", "suite.yaml", "--methods"),
        "tasks": (plain, "--tasks", "arc_easy", "--method"), "report": ("--model", plain, "--methods"),
    }  # fmt: skip
    assert run(command, *given[command], "nkt") == 1
    assert "Did you mean 'ntk'?" in capfd.readouterr().err
    assert run(command, *given[command], "ntk") == 1
    assert default.removesuffix("/x") in capfd.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat", "tasks", "report"])
def test_an_unknown_method_is_told_before_the_model_is_loaded(
    command: str, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "generate": (plain, "--prompt", "x", "--method"), "chat": (plain, "--method"),
        "tasks": (plain, "--tasks", "arc_easy", "-o", tmp_path / "out", "--method"),
        "report": ("--model", plain, "-o", tmp_path / "page.html", "--methods"),
    }  # fmt: skip
    (plain / "model.safetensors").write_bytes(b"no weights")
    assert run(command, *given[command], "nkt") == 1
    assert "unknown method 'nkt'. Did you mean 'ntk'?" in capfd.readouterr().err
