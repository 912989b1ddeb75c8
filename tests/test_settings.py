"""Settings are checked when they are made, and become options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from longwave.cli.settings import with_settings
from longwave.settings import Settings, setting


@dataclass(frozen=True)
class Toy(Settings):
    whose: ClassVar[str] = "toy"
    trials: int = setting(10, "How many.", least=1)
    rate: float = setting(0.5, "How fast.")
    kind: str = setting("plain", "Which.", choices=("plain", "fancy"))
    windows: int | None = setting(None, "How many windows; as many as fit.")


def test_defaults_and_what_is_given() -> None:
    assert Toy.create(trials=3, windows=None).as_dict() == {
        "trials": 3, "rate": 0.5, "kind": "plain", "windows": None,
    }  # fmt: skip
    assert type(Toy.create(rate=2).rate) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "trials of toy must be at least 1, got 0"),
        ({"trials": True}, "trials of toy must be a whole number, got True"),
        ({"trials": 2.0}, "must be a whole number"),
        ({"rate": float("nan")}, "rate of toy must be a finite number"),
        ({"rate": "1"}, "rate of toy must be a finite number, got '1'"),
        ({"kind": "odd"}, "kind of toy must be one of plain, fancy, got 'odd'"),
        ({"windows": "4"}, "windows of toy must be a whole number"),
        ({"trails": 3}, "unknown setting of toy 'trails'. Did you mean 'trials'"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy.create(**given)


def test_fields_become_options() -> None:
    found: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @with_settings(Toy)
    def toy(name: str, **settings: Any) -> None:
        found.update(Toy.create(**settings).as_dict(), name=name)

    assert CliRunner().invoke(app, ["x", "--trials", "4", "--kind", "fancy"]).exit_code == 0
    assert found == {"trials": 4, "rate": 0.5, "kind": "fancy", "windows": None, "name": "x"}
    text = CliRunner().invoke(app, ["--help"], terminal_width=100).output
    assert "How many. Default 10." in text and "--windows" in text
