"""`longwave tasks`: records of the harness and of local samples, in the report too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longwave.cli.main import main
from longwave.evaluation.results import TASKS, read


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Two samples in the format of Self-Extend's passkeys."""
    rows = [
        {"input": f"Grass. The pass key is {key}. What is the pass key?", "target": str(key), "passkey_position": 7}
        for key in (12345, 54321)
    ]
    path = tmp_path / "samples" / "passkey_examples.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_local_samples(plain: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ("tasks", plain, "--samples", samples, "--method", "yarn", "--to", 256, "-o", out)
    assert run(*arguments) == 0
    assert "passkey" in capsys.readouterr().out
    found = read(out / "tasks.json", TASKS)
    (row,) = found["rows"]
    assert (row["task"], row["samples"], row["value"]) == ("passkey", 2, 0.0)
    assert list(found["data"]) == [str(samples)]
    assert found["settings"]["max_length"] == 256
    assert run("report", out, "-o", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "Tasks · plain" in page and "passkey: 0.000 exact_match" in page
    capsys.readouterr()
    assert run("plot", out) == 1
    assert "has no lengths to plot. `longwave report` shows" in capsys.readouterr().err
    assert run(*arguments) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --tasks NAME,... or --samples PATH, one of them"),
        (("--samples", "/absent"), "/absent"),
        (
            ("--samples", "empty.jsonl"),
            "error: samples empty.jsonl holds no sample. Replace the file or leave it out.\n",
        ),
        (("--samples", "/absent", "--chat"), "--factor, --chat and --lengths are for --tasks"),
        (("--samples", "empty.jsonl", "--truncate", "left"), "Leave out --truncate left."),
        (("--tasks", "niah_single_9", "--method", "yran"), "Did you mean 'yarn'"),
    ],
)
def test_bad_input_is_one_line(
    plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert run("tasks", plain, *arguments, "-o", tmp_path / "out") == 1
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
