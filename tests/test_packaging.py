"""What the package needs is what it declares."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from longwave.errors import install

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def imported_packages() -> dict[str, Path]:
    """Top-level packages that the sources import, anywhere in a file, and one file that does."""
    found = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            found |= {name.partition(".")[0]: path for name in names}
    return found


def requirement_name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0].lower().replace("-", "_")


def test_defect_imported_but_undeclared():
    """The official code imports wandb and does not say so. Here every import is declared, and every pin exists."""
    # numpy and pyarrow come with datasets, and so on: using what they hand out needs no line of its own
    implied = {"numpy": "datasets", "pyarrow": "datasets", "click": "typer"}
    implied |= {"tokenizers": "transformers", "huggingface_hub": "transformers"}
    implied |= {"triton": "torch"}  # of a build for GPUs
    declared = {requirement_name(r) for r in PROJECT["dependencies"]}
    hosts = {"vllm", "sglang", "prometheus_client"}  # longwave is a plugin in their environments
    distributions = {"yaml": "pyyaml"}  # where it is not called like what one imports
    foreign = {
        distributions.get(name, name): path
        for name, path in imported_packages().items()
        if name not in sys.stdlib_module_names | hosts | {"longwave"}
    }
    extras = (group for name, group in PROJECT["optional-dependencies"].items() if name != "dev")
    known = declared | {requirement_name(requirement) for group in extras for requirement in group}
    missing = {n: p.name for n, p in foreign.items() if n not in known and implied.get(n) not in known}
    assert not missing
    unused = declared - set(foreign) - {"accelerate"}  # accelerate: the Trainer refuses to start without it
    assert not unused


def test_transformers_from_the_version_that_was_tested():
    """The Trainer of 5.0 lacks arguments and methods that training needs: no claim beyond what ran."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").split()
    tested = next(line for line in pins if line.startswith("transformers=="))
    floor = next(r for r in PROJECT["dependencies"] if r.startswith("transformers"))
    assert f"{floor.replace('>=', '==')}.0" == tested


def test_constraints_pin_every_dependency():
    pins = {requirement_name(line) for line in (ROOT / "constraints.txt").read_text("utf-8").split() if "==" in line}
    wanted = (
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + PROJECT["optional-dependencies"]["eval"]
    )
    assert {requirement_name(r) for r in wanted} <= pins


def test_an_extra_is_installed_by_one_command():
    """Help and docs write out what messages take from `install`."""
    places = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = [command for path in places for command in re.findall(r"pip install '[^'\n]*'", path.read_text("utf-8"))]
    commands = {install(extra) for extra in PROJECT["optional-dependencies"]} | {"pip install 'longwave[{extra}]'"}
    assert len(found) >= 5 and set(found) <= commands
