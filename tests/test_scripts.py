"""The scripts in runs/ and benchmarks/ make the numbers of the docs. What they take from longwave must exist."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "runs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def taken(tree: ast.AST) -> tuple[dict[str, Any], list[str]]:
    """What the source imports from longwave, by the name that it has there, and the names that do not exist."""
    values, absent = dict[str, Any](), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "longwave":
                    values[alias.asname or alias.name] = import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "longwave":
            for alias in node.names:
                try:
                    value = getattr(import_module(str(node.module)), alias.name, None)
                    value = import_module(f"{node.module}.{alias.name}") if value is None else value
                except ImportError:
                    absent.append(f"{node.module}.{alias.name}")
                else:
                    values[alias.asname or alias.name] = value
    return values, absent


def missing(source: str) -> list[str]:
    """Names of longwave that the source imports, or asks an imported module for, and that do not exist."""
    tree = ast.parse(source)
    values, found = taken(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = values.get(node.value.id)
            if isinstance(owner, ModuleType) and not hasattr(owner, node.attr):
                found.append(f"{owner.__name__}.{node.attr}")
    return found


def called(node: ast.expr, values: dict[str, Any]) -> Callable[..., Any] | None:
    """What a call calls, if it is a name from longwave or an attribute of a module or class from there."""
    if isinstance(node, ast.Name):
        value = values.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = values.get(node.value.id)
        value = getattr(owner, node.attr, None) if isinstance(owner, ModuleType | type) else None
    else:
        value = None
    return value if callable(value) else None


def refused(source: str) -> list[str]:
    """Keywords that the source gives to functions and classes of longwave, and that these do not take."""
    tree = ast.parse(source)
    values, _ = taken(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or (function := called(node.func, values)) is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            continue
        known = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
        given = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        found += [f"{function.__qualname__}({name}=)" for name in given if name not in known]
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_takes_from_longwave_exists(path: Path) -> None:
    assert missing(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from longwave.cli import generating\ngenerating.sampling()", "longwave.cli.generating.sampling"),
        ("from longwave.files import nothing", "longwave.files.nothing"),
        ("from longwave.nowhere import a", "longwave.nowhere.a"),
        ("import longwave\nlongwave.extent", "longwave.extent"),
    ],
)
def test_a_missing_name_is_noticed(source: str, name: str) -> None:
    assert missing(source) == [name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_calls_takes_its_keywords(path: Path) -> None:
    assert refused(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from longwave.report.plots import save as keep\nkeep(1, colour=2)",
        "from longwave.report import plots\nplots.save(1, path=3, colour=2)",
    ],
)
def test_a_keyword_that_is_not_taken_is_noticed(source: str) -> None:
    assert refused(source) == ["save(colour=)"]
