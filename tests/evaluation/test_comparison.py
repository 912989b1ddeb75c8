"""`longwave compare` and `evaluate`: equal to the single commands, interrupted, shared, misused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from longwave.cli import progressing
from longwave.cli.comparing import candidates
from longwave.cli.evaluating import results_folder
from longwave.cli.main import main
from longwave.data.hashes import data_hashes, data_identity
from longwave.evaluation.cells import fingerprint
from longwave.evaluation.results import read
from longwave.evaluation.suites import names, parse_suite, read_suite

SUITE = "- perplexity: {windows: 4, targets: 16}\n- passkey: {trials: 4, depths: 2}\n  lengths: 3x\n"
SUITE += "- perplexity: {protocol: overlap, windows: 2, by_position: 4}\n  name: along\n"
SUITE += "- needle: {trials: 2, depths: 2}\n  lengths: 4x\n"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book. " for i in range(120)))
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def cells(folder: Path) -> dict[str, int]:
    """Every finished cell and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


@pytest.mark.slow
def test_rows_are_those_of_the_single_commands(
    plain: Path, trained: Path, book: Path, suite: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("compare", plain, trained, "--data", book, "--suite", suite, "--methods", "none,own", "-o", out) == 0
    found = read(out / "perplexity.json")
    assert [row["label"] for row in found["rows"]] == ["plain", "trained: none", "trained: clex"]
    assert run("perplexity", trained, "--data", book, "--lengths", "1x,2x,4x", "--windows", 4, "--targets", 16,
               "--methods", "none,clex", "-o", tmp_path / "single") == 0  # fmt: skip
    single = read(tmp_path / "single" / "perplexity.json")
    assert [row["lengths"] for row in found["rows"][1:]] == [row["lengths"] for row in single["rows"]]
    assert found["settings"] == single["settings"] and found["data"] == single["data"]
    assert run("passkey", plain, "--lengths", "3x", "--trials", 4, "--depths", 2, "--methods", "none",
               "-o", tmp_path / "keys") == 0  # fmt: skip
    ours, theirs = read(out / "passkey.json"), read(tmp_path / "keys" / "passkey.json")
    assert ours["rows"][0]["lengths"] == theirs["rows"][0]["lengths"]
    assert (ours["settings"], ours["seed"]) == (theirs["settings"], theirs["seed"])
    assert run("perplexity", plain, "--data", book, "--lengths", "1x,2x,4x", "--windows", 2, "--protocol", "overlap",
               "--by-position", 4, "--methods", "none", "-o", tmp_path / "along") == 0  # fmt: skip
    ours, theirs = read(out / "along.json"), read(tmp_path / "along" / "perplexity.json")
    assert ours["rows"][0]["lengths"] == theirs["rows"][0]["lengths"]
    assert ours["settings"] == theirs["settings"]
    assert run("needle", plain, "--data", book, "--lengths", "4x", "--trials", 2, "--depths", 2, "--methods", "none",
               "-o", tmp_path / "needle") == 0  # fmt: skip
    ours, theirs = read(out / "needle.json"), read(tmp_path / "needle" / "needle.json")
    assert ours["rows"][0]["lengths"] == theirs["rows"][0]["lengths"]
    assert ours["settings"] == theirs["settings"]
    page = (out / "report.html").read_text()
    assert all(part in page for part in ("trained: clex", "Needle retrieval", "Loss by position"))
    assert (out / "perplexity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_equal_names_are_runs(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(plain, tmp_path / "other")
    arguments = ("--data", book, "--suite", suite, "--methods", "ntk", "-o", tmp_path / "out")
    assert run("compare", f"a={plain}", f"a={other}", *arguments) == 1
    assert "are the same model, and runs of a must differ" in capsys.readouterr().err
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert run("compare", f"a={plain}", f"a={other}", *arguments) == 0
    assert "ntk (2 runs)" in capsys.readouterr().out
    assert len(cells(tmp_path / "out")) == 8


@pytest.mark.slow
def test_nothing_finished_is_computed_again(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ("evaluate", plain, "--data", book, "--suite", suite, "--lengths", "1x,2x", "-o", out)
    assert run(*common, "--methods", "none,ntk") == 0
    before = cells(out)
    assert run(*common, "--methods", "none,ntk,yarn") == 0  # more rows cost only themselves
    after = cells(out)
    assert len(before) == 8 and len(after) == 12 and before.items() <= after.items()
    assert "8 of 12 cells were finished before" in capsys.readouterr().err
    assert run(*common, "--methods", "none") == 1
    assert "rows that this command does not measure, or not alike (ntk, yarn)" in capsys.readouterr().err
    assert run(*common, "--methods", "none", "--overwrite") == 0
    book.write_text(book.read_text() + "One more line. " * 9)  # other data, other cells; passkeys read none
    assert run(*common, "--methods", "none", "--overwrite") == 0
    assert len(cells(out)) == 15


@pytest.mark.slow
def test_killed_and_started_again(plain: Path, book: Path, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [plain, "--data", book, "--suite", suite, "--lengths", "1x,2x", "-o", out]
    command = [sys.executable, "-m", "longwave", "evaluate", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(cells(out) if (out / "cells").is_dir() else ()) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = cells(out)
    assert len(before) >= 2
    assert main(command[3:]) == 0
    after = cells(out)
    assert len(after) == 16 and before.items() <= after.items()


@pytest.mark.slow
def test_two_processes_share_a_folder(plain: Path, book: Path, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [plain, "--data", book, "--suite", suite, "--lengths", "1x,2x", "-o", out, "--json"]
    command = [sys.executable, "-m", "longwave", "evaluate", *map(str, arguments)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    found = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    first, second = (json.loads(output) for output, _ in found)
    assert first["perplexity"]["rows"] == second["perplexity"]["rows"]
    assert first["passkey"]["rows"] == second["passkey"]["rows"]
    # Written once each: what the slower one measured too would have another time of creation.
    assert len(cells(out)) == 16
    assert not list((out / "cells").glob("*.lock"))


@pytest.mark.slow
def test_a_log_gets_a_line_for_each_cell(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", plain, "--data", book, "--suite", suite, "--lengths", "1x,2x", "-o", out, "--json")
    assert run(*arguments, "--methods", "none") == 0
    capsys.readouterr()
    assert run(*arguments, "--methods", "none,ntk") == 0
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)["perplexity"]["rows"][1]["lengths"]
    note, *lines = captured.err.splitlines()
    assert note == "4 of 8 cells were finished before"
    assert lines[0].startswith(f"[5/8] perplexity, ntk: {first['ppl']:.0f} at 64, {second['ppl']:.0f} at 128; about ")
    assert lines[0].endswith(" left")
    assert [line[: line.index(":")] for line in lines] == [
        "[5/8] perplexity, ntk", "[6/8] passkey, ntk", "[7/8] along, ntk", "[8/8] needle, ntk",
    ]  # fmt: skip
    assert lines[-1].endswith(": 0 % at 256")


def test_a_log_gets_a_line_a_minute_in_between(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressing, "EVERY", 0.0)
    assert run("passkey", plain, "--lengths", "2x", "--trials", 4, "--methods", "none", "-o", tmp_path / "out",
               "--tokens-per-batch", 256) == 0  # fmt: skip
    half, whole, done = capsys.readouterr().err.splitlines()
    assert half.startswith("none: 50 % of all is read; about ") and half.endswith(" left")
    assert (whole, done) == ("none: 100 % of all is read", "[1/1] none: 0 % at 128")


@pytest.mark.parametrize(("seconds", "text"), [(40.2, "40 s"), (720, "12 min"), (12_600, "3.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert progressing.duration(seconds) == text


@pytest.mark.slow
def test_a_terminal_gets_a_bar(plain: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "longwave", "passkey", str(plain), "--lengths", "2x", "--trials", "4"]
    done = subprocess.run(
        [*command, "--methods", "none", "-o", str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, "TERM": "xterm"}, timeout=120,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1_000_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "━" in shown and "none" in shown and "[1/1]" not in shown


def test_a_cell_depends_on_the_weights(plain: Path, tmp_path: Path) -> None:
    before = fingerprint(str(plain))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    (plain / "training.json").write_text("{}")  # how it was made is not what it is
    assert fingerprint(str(plain)) == before
    weights = plain / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(str(plain)) != before


def test_any_file_of_weights_counts(plain: Path) -> None:
    before = fingerprint(str(plain))
    for name, counts in (("pytorch_model.bin", True), ("README.md", False), ("metrics.jsonl", False), (".lock", False)):
        (plain / name).write_bytes(b"1")
        assert (fingerprint(str(plain)) != before) == counts, name
        (plain / name).unlink()


def test_the_order_of_texts_is_part_of_them(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Windows are cut from the stream that they make together; what a file is called is not."""
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("".join(f"Line {i} of the book. " for i in range(60)))
    two.write_text("".join(f"{i} is another number. " for i in range(60)))
    (tmp_path / "suite.yaml").write_text("- perplexity: {windows: 2, targets: 16}\n")
    out, asked = tmp_path / "out", ("--suite", tmp_path / "suite.yaml", "--lengths", "1x", "--methods", "none")
    assert run("compare", plain, "--data", one, "--data", two, *asked, "-o", out) == 0
    assert len(cells(out)) == 1
    renamed = two.rename(tmp_path / "renamed.txt")
    assert run("compare", plain, "--data", one, "--data", renamed, *asked, "-o", out) == 0
    assert len(cells(out)) == 1
    assert run("compare", plain, "--data", renamed, "--data", one, *asked, "-o", out, "--overwrite") == 0
    assert len(cells(out)) == 2
    lines = tmp_path / "one.jsonl"
    one.write_text('{"text": "A line of text that is long enough."}\n' * 40)
    lines.write_bytes(one.read_bytes())
    keys = [data_identity(data_hashes([path])) for path in (one, lines)]
    assert keys[0] != keys[1]


def test_suites_of_longwave_are_valid() -> None:
    assert names() == ["quick", "standard"]
    for name in names():
        assert read_suite(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of evaluations"),
        ("- [", "is not YAML"),
        ("- perplexty: {}", "item 1: unknown evaluation 'perplexty'. Did you mean 'perplexity'?"),
        ("- perplexity: {window: 4}", "item 1: unknown setting of perplexity 'window'. Did you mean 'windows'?"),
        ("- perplexity: {windows: many}", "item 1: windows of perplexity must be a whole number, got 'many'"),
        ("- perplexity: 4", "perplexity takes settings such as"),
        ("- perplexity: {}\n  passkey: {}", "item 1 must name one evaluation"),
        ("- perplexity\n- perplexity: {windows: 4}", "two evaluations called 'perplexity'"),
        (
            "- passkey: {}\n  name: ppl-by-position\n- perplexity: {protocol: overlap, by_position: 4}\n  name: ppl",
            "an evaluation called 'ppl-by-position', and 'ppl' writes its figure by position to ppl-by-position.png",
        ),
        ("- perplexity: {}\n  name: ../x", "may have letters"),
        ("- perplexity: {}\n  lengths: 2y", "item 1: bad length '2y'"),
    ],
)
def test_bad_suites(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("?", r"\?")):
        parse_suite(text, "mine.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("--suite", "quik"),
            "unknown suite 'quik'. Did you mean 'quick'? Available: quick, standard, or a YAML file.",
        ),
        (("--methods", "nkt"), "unknown method 'nkt'. Did you mean 'ntk'?"),
        (("--methods", "own"), "has no method of its own"),
        (("--lengths", "1000x"), "fewer than one window of 64000"),
        (("--lengths", "2y"), "bad length '2y'"),
        (("--base", "/absent"), "/absent"),
    ],
)
def test_bad_input_is_one_line(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    change: tuple[str, str], message: str,
) -> None:  # fmt: skip
    arguments = {"--data": book, "--suite": suite, "--lengths": "1x", "-o": tmp_path / "out", **dict([change])}
    assert run("evaluate", plain, *(part for pair in arguments.items() for part in pair)) == 1
    error = capfd.readouterr().err
    assert message in error and error.count("\n") <= 2
    assert "Traceback" not in error


def test_lengths_beyond_the_maximum(
    trained: Path, book: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", trained, "--data", book, "--lengths", "8x", "-o", tmp_path / "out") == 1
    assert "length 512 is beyond the maximum of 256 tokens" in capfd.readouterr().err


def test_text_is_asked_for(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", plain, "-o", tmp_path / "out") == 1
    assert "perplexity needs text. Pass --data PATH." in capfd.readouterr().err


@pytest.mark.slow
def test_a_damaged_cell_is_named(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", plain, "--data", book, "--suite", suite, "--lengths", "1x", "--methods", "none", "-o", out)
    assert run(*arguments) == 0
    path = next((out / "cells").glob("*.json"))
    path.write_text(path.read_text()[:100])
    assert run(*arguments) == 1
    error = capfd.readouterr().err
    assert str(path) in error and "is not valid JSON" in error
    assert "It is the cell of none in " in error and "keeps the others" in error
    assert error.splitlines()[-2].startswith("error: ")
    os.remove(path)
    assert run(*arguments) == 0


def test_models_of_other_lengths_are_refused(
    plain: Path, book: Path, suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(plain, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    assert run("compare", plain, other, "--data", book, "--suite", suite, "-o", tmp_path / "out") == 1
    assert "trained at different lengths (plain 64, other 32)" in capfd.readouterr().err
    assert cells(tmp_path / "out") == {}


def test_a_folder_of_other_files_is_no_place_for_a_comparison(
    plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """--overwrite replaces tables only, so the message must not advise it."""
    (tmp_path / "suite.yaml").write_text("- passkey: {trials: 2}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    asked = ("--suite", tmp_path / "suite.yaml", "--lengths", "3x", "--methods", "none", "-o", tmp_path / "out")
    for command in ("evaluate", "compare"):
        assert run(command, plain, *asked, "--overwrite") == 1
        assert capfd.readouterr().err == (
            f"error: output folder {tmp_path / 'out'} holds other files than a comparison. Choose another --output.\n"
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_model_in_the_current_folder_has_a_name(
    plain: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.yaml").write_text("- passkey: {trials: 2}\n")
    monkeypatch.chdir(plain)
    asked = ("--suite", tmp_path / "suite.yaml", "--lengths", "3x")
    assert run("evaluate", ".", "--base", trained, *asked, "--methods", "none", "-o", tmp_path / "out") == 0
    assert [row["label"] for row in read(tmp_path / "out" / "passkey.json")["rows"]] == ["plain", "base"]


def test_equal_names_have_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/plain", "b/plain"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "plain")
    assert [each.name for each in candidates([".", "../../b/plain"], ())] == ["a/plain", "b/plain"]
    assert [each.name for each in candidates([".", "org/model", "mine=../../b/plain"], ())] == [
        "a/plain",
        "model",
        "mine",
    ]
    assert str(results_folder(None, "passkey", ".")) == "passkey-plain"
