"""`longwave data inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longwave.cli.main import main


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = ['{"text": "%s"}' % ("x" * size) for size in (3, 3, 7, 100)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": ""}', "broken", ""]), "utf-8")
    (tmp_path / "b.txt").write_text("y" * 63, "utf-8")
    return tmp_path


def test_lengths_tokens_and_what_a_train_length_would_use(
    texts: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{texts}/a.jsonl@0.4", f"{texts}/b.txt@0.6"]
    asked = ["data", "inspect", *given, "--model", str(plain), "--train-length", "8", "--json"]
    assert main([*asked, "--plot", str(texts / "lengths.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["sources"]
    assert found["unit"] == "tokens" and (first["share"], second["share"]) == (0.4, 0.6)
    assert (first["documents"], first["empty"], first["broken_lines"], first["tokens"]) == (4, 1, 1, 117)
    assert first["histogram"][0] == {"from": 4, "documents": 2, "tokens": 8}
    assert sum(each["tokens"] for each in first["histogram"]) == 117
    assert first["training"]["windows"] == 14 and first["training"]["dropped"] == 5
    assert first["training"]["documents_at_least_as_long"] == 0.5
    assert first["training"]["tokens_in_them"] == pytest.approx(109 / 117)
    assert second["length"]["longest"] == 64
    assert (texts / "lengths.png").stat().st_size > 1000


def test_a_table_and_a_histogram(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(texts)]) == 0
    captured = capsys.readouterr()
    assert (
        "characters" in captured.out and "█" in captured.out and "1 empty documents and 1 broken lines" in captured.out
    )
    assert "skipped 1 broken line" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strict"], "line 6: not JSON"),
        (["--train-length", "8"], "pass --model"),
        (["--text-column", "body"], "--text-column NAME"),
    ],
)
def test_what_is_refused(texts: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(texts / "a.jsonl"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_share_outside_training_is_refused(texts: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perplexity", str(plain), "--data", f"{texts}/b.txt@0.5"]) == 1
    assert "only training mixes data by shares" in capsys.readouterr().err
