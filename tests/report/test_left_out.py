"""A report of methods: one that cannot run is left out with a line, and attention methods say at which t they turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from longwave.cli.main import main
from longwave.report.trajectories import drawn_of_model


def test_a_method_that_cannot_reach_so_far_is_left_out(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.html"
    assert main(["report", "--model", str(plain), "--methods", "string,yarn", "-o", str(output)]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "note: string is left out: string has distances of up to" in error
    assert "yarn at t = 16" in output.read_text()
    assert main(["report", "--model", str(plain), "--methods", "string", "-o", str(tmp_path / "b.html")]) == 1
    assert "string has distances of up to" in capsys.readouterr().err


def test_frequencies_of_attention_methods(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.html"
    methods = "none,two-band,rerope,dca,two-band:window=8"
    assert main(["report", "--model", str(plain), "--methods", methods, "-o", str(output)]) == 0
    text = output.read_text()
    assert "two-band at t = 16 has the frequencies of linear at t = " in text
    assert "rerope, dca: frequencies as pre-trained at every t." in text
    assert list(drawn_of_model(str(plain), methods.split(",")).banded) == methods.split(",")[1:]
