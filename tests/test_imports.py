"""The architecture's import rules, read from the sources, and the public API."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import longwave

PACKAGE = Path(longwave.__file__).parent

# Imports point from a later row to an earlier one. Inside a row only the modules of one package, or of the
# row that attaches to a model, know one another.
LAYERS = (
    ("names", "files", "layout", "outside", "errors", "provenance", "recipes", "rules", "settings"),
    ("rope", "schedule"),
    ("trajectory",),
    ("methods",),
    ("data",),
    ("attention",),
    ("extensions",),
    ("checkpoints",),
    ("models",),
    ("serving",),
    ("evaluation", "exporters"),
    ("training",),  # measures itself while it goes
    ("report",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOM = {RANK["names"]}  # rows whose modules know one another
USES_PUBLIC_API = {"demo", "cli"}  # may `import longwave`, as a user would

THIRD_PARTY = {
    "names": set(),
    "files": set(),
    "layout": set(),
    "outside": set(),
    "errors": set(),
    "provenance": set(),
    "recipes": set(),
    "rules": set(),
    "settings": set(),
    "rope": {"torch"},
    "schedule": set(),
}
THIRD_PARTY |= {"trajectory": {"torch"}, "methods": {"torch", "torchdiffeq"}, "attention": {"torch"}}
HOOKS = {
    "attention/hook.py",  # the one file of the torch-only rooms that transformers calls
    "attention/gpu_dot.py",  # the one that needs Triton, where there is a GPU
}

DEPRECATED = {"generation.py", "text.py"}  # old names, which lead to the new ones

SOURCES = sorted(
    path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) not in {"__init__.py", *DEPRECATED}
)


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth; `from a import b` counts as a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                inside = PACKAGE.parent.joinpath(*name.split("."))
                yield name if inside.with_suffix(".py").exists() or inside.is_dir() else str(node.module)


def violations(path: Path, root: Path = PACKAGE) -> list[str]:
    unit = path.relative_to(root).parts[0].removesuffix(".py")
    if unit not in RANK:
        return [f"{unit} has no row in LAYERS"]
    found = []
    for name in imported_modules(path):
        top, _, rest = name.partition(".")
        if top != "longwave":
            allowed = None if str(path.relative_to(root)) in HOOKS else THIRD_PARTY.get(unit)
            if allowed is not None and top not in allowed | set(sys.stdlib_module_names):
                found.append(f"{unit} imports {top}")
        elif not rest:
            if unit not in USES_PUBLIC_API:
                found.append(f"{unit} imports the package itself")
        else:
            other = rest.split(".")[0]
            rank = RANK.get(other, len(LAYERS))
            same_row = rank == RANK[unit] and (other == unit or rank in ROOM)
            if not (rank < RANK[unit] or same_row):
                found.append(f"{unit} imports {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("rope.py", "from transformers import LlamaConfig", "rope imports transformers"),
        ("methods/new.py", "from longwave.extensions import attach", "methods imports longwave.extensions"),
        ("evaluation/x.py", "from longwave import files\nimport longwave.training", "longwave.training"),
        ("extensions/x.py", "def f():\n    import longwave.cli.main", "extensions imports longwave.cli.main"),
        ("extensions/x.py", "from longwave import extend", "extensions imports the package itself"),
        ("attention/new.py", "import transformers", "attention imports transformers"),
        ("newcomer.py", "", "newcomer has no row"),
    ],
)
def test_the_rule_notices(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    (found,) = violations(path, tmp_path)
    assert complaint in found


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def blocked(*names: str) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def test_methods_and_attention_need_no_transformers() -> None:
    rooms = "import longwave.methods, longwave.attention.temperature, longwave.attention.kernels"
    done = python(blocked("transformers", "accelerate", "datasets") + rooms)
    assert done.returncode == 0, done.stderr


HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "matplotlib")


def test_import_longwave_loads_nothing() -> None:
    done = python(blocked(*HEAVY, "typer", "rich") + "import longwave; print(longwave.__version__, len(dir(longwave)))")
    assert done.returncode == 0, done.stderr


def test_every_help_page_without_torch() -> None:
    code = """
from longwave.cli.main import COMMANDS, main
for args in [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]:
    assert main(args) == 0, args
"""
    done = python(blocked(*HEAVY) + code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves() -> None:
    assert set(longwave.__all__) <= set(dir(longwave))
    for name in longwave.__all__:
        assert getattr(longwave, name) is not None
    assert len(set(longwave.__all__)) == len(longwave.__all__)


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == longwave._HOME_OF


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'extent'.*extend"):
        longwave.extent  # noqa: B018
