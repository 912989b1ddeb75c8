"""Settings are checked when they are made, and become options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from longwave.cli.settings import with_settings
from longwave.settings import REQUIRED, Settings, parse_pairs, setting


@dataclass(frozen=True)
class Toy(Settings):
    whose: ClassVar[str] = "toy"
    trials: int = setting(10, "How many.", least=1)
    rate: float = setting(0.5, "How fast.")
    kind: str = setting("plain", "Which.", choices=("plain", "fancy"))
    windows: int | None = setting(None, "How many windows; as many as fit.")
    share: float = setting(0.0, "Which part.", least=0, most=1)
    pace: float = setting(1.0, "How fast at least.", least=1)


def test_defaults_and_what_is_given() -> None:
    assert Toy.create(trials=3, windows=None).as_dict() == {
        "trials": 3, "rate": 0.5, "kind": "plain", "windows": None, "share": 0.0, "pace": 1.0,
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
        ({"share": 1.5}, r"share of toy must be between 0 and 1, got 1\.5"),
        ({"share": float("nan")}, "share of toy must be between 0 and 1, got nan"),
        ({"pace": 0.5}, r"pace of toy must be a number >= 1, got 0\.5"),
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
    assert found == Toy(trials=4, kind="fancy").as_dict() | {"name": "x"}
    text = CliRunner().invoke(app, ["--help"], terminal_width=100).output
    assert "How many. Default 10." in text and "--windows" in text


@dataclass(frozen=True)
class Strict(Settings):
    length: int = setting(REQUIRED, "How long.")
    options: Mapping[str, Any] | None = setting(None, "Further ones; repeatable.")


def test_a_field_without_a_default_is_a_required_option_and_a_mapping_may_be_repeated() -> None:
    found: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @with_settings(Strict)
    def strict(**settings: Any) -> None:
        found.append(settings | {"options": parse_pairs(settings["options"] or ())})

    given = ["--option", "steps=8", "--option", "name=a=b", "--option", 'more={"x": [1]}']
    assert CliRunner().invoke(app, given).exit_code == 2
    assert CliRunner().invoke(app, ["--length", "3", *given]).exit_code == 0
    assert CliRunner().invoke(app, ["--length", "3"]).exit_code == 0
    assert found == [
        {"length": 3, "options": {"steps": 8, "name": "a=b", "more": {"x": [1]}}},
        {"length": 3, "options": {}},
    ]
    with pytest.raises(ValueError, match="an option of a method is KEY=VALUE, got 'steps'"):
        parse_pairs(["steps"])
