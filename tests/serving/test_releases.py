"""Which releases of an engine a plugin runs with."""

from __future__ import annotations

import pytest

from longwave.serving.hook import Releases

OWN = Releases("vLLM", ("0.32",), "LONGWAVE_TEST_UNTESTED")


@pytest.mark.parametrize("version", ["0.33.0", "1.32.0", "0.3", "0.320.1", "0"])
def test_other_releases_are_refused_unless_asked_for(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = OWN.refusal(version)
    assert said == f"the plugin was tested with vLLM 0.32, and this is {version}. LONGWAVE_TEST_UNTESTED=1 tries it."
    monkeypatch.setenv("LONGWAVE_TEST_UNTESTED", "1")
    assert OWN.refusal(version) is None


@pytest.mark.parametrize("version", ["0.32", "0.32.0", "0.32.1", "0.32.0+cpu"])
def test_a_tested_release_runs(version: str) -> None:
    assert OWN.refusal(version) is None
