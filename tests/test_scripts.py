"""The scripts in runs/ and benchmarks/ make the numbers of the docs. What they take from longwave must exist."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "runs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def missing(source: str) -> list[str]:
    """Names of longwave that the source imports, or asks an imported module for, and that do not exist."""
    tree, modules, found = ast.parse(source), dict[str, Any](), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "longwave":
                    modules[alias.asname or alias.name] = import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "longwave":
            for alias in node.names:
                try:
                    value = getattr(import_module(str(node.module)), alias.name, None)
                    value = import_module(f"{node.module}.{alias.name}") if value is None else value
                except ImportError:
                    found.append(f"{node.module}.{alias.name}")
                else:
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if isinstance(owner, ModuleType) and not hasattr(owner, node.attr):
                found.append(f"{owner.__name__}.{node.attr}")
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
