"""The command line's shell: help, exit codes, and errors that take one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import longwave
from longwave.attention import ATTENTIONS
from longwave.cli.main import COMMANDS, app, main
from longwave.methods import METHODS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longwave {longwave.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"longwave {command}" in out
    assert "Example" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_whole_on_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    params = typer.main.get_command(app).commands[command].params
    options = [param for param in params if param.opts[0][:1] == "-" and not getattr(param, "hidden", False)]
    declared = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert "--help" in out and declared <= set(out.replace(",", " ").split())


def test_help_lists_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line[2] not in " -"]
    assert listed == list(COMMANDS)


def test_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perplexty"]) == 2
    assert "Did you mean 'perplexity'?" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["methods", "--jsn"], ["train"], []])
def test_wrong_usage_is_exit_code_2(args: list[str]) -> None:
    assert main(args) == 2


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a file with a long name, so that a narrow terminal would break the line, and [brackets]"
    file.touch()
    assert main(["demo", "--output", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: output {file} is a file.")
    assert captured.err.count("\n") == 1


MISSING = {
    "perplexity": ["perplexity", "MODEL", "--data", "absent.txt"],
    "passkey": ["passkey", "./absent"],
    "needle": ["needle", "./absent", "--data", "here"],
    "tasks": ["tasks", "./absent", "--tasks", "arc_easy"],
    "evaluate": ["evaluate", "here", "--base", "./absent"],
    "compare": ["compare", "one=here", "two=./absent", "--data", "here"],
    "generate": ["generate", "./absent", "--prompt", "x"],
    "chat": ["chat", "./absent"],
    "train": ["train", "MODEL", "--data", "absent.txt", "--train-length", "8", "--max-factor", "2", "-o", "out"],
    "export": ["export", "./absent", "-o", "out"],
}


@pytest.mark.parametrize("command", MISSING)
def test_a_missing_path_is_told_before_anything_slow_is_imported(command: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    code = "import sys; from longwave.cli.main import main; code = main(sys.argv[1:])\n"
    code += "print(code, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    arguments = [sys.executable, "-c", code, *MISSING[command]]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout == "1 []\n"
    assert "absent" in done.stderr and "does not exist" in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="is a file"):
        main(["demo", "--output", str(file), "--debug"])


def test_methods_table_and_json_name_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*METHODS, *ATTENTIONS]
    assert {row["name"] for row in rows if row["needs_training"]} == {m.name for m in METHODS.values() if m.trained}
    assert all(f" {name} " in table for name in (*METHODS, *ATTENTIONS))


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m longwave methods --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_interrupt_is_exit_code_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longwave", "demo", "--quick", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    # Not earlier: an interrupt while a library is imported may be swallowed there.
    steps = tmp_path / "out" / "steps"
    while not list(steps.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "start again to go on" in out
    assert "Traceback" not in err
