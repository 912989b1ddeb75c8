"""What the documents tell the reader to do works, in the order they say it."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.cli.main import main
from longwave.demo.corpus import stdlib_files
from longwave.methods import METHODS
from longwave.methods.linear import Linear
from longwave.rope import Rope

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Appended to the commands, so that a random model of two layers is done with them in seconds.
SMALL = {
    "train": ["--steps", "2", "--batch-size", "1"],
    "perplexity": ["--windows", "2"],
    "passkey": ["--trials", "2"],
    "compare": ["--suite", "one.yaml", "--lengths", "1x,2x"],
    "generate": ["--max-new-tokens", "3"],
    "chat": [],
    "export": [],
    "serve": ["--help"],  # it would not end: tests/serving/test_serve_command.py runs it
}


def commands(text: str) -> list[list[str]]:
    lines = (line for language, body in BLOCK.findall(text) if language == "bash" for line in body.splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture
def workplace(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and the text that the README speaks of."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    (tmp_path / "books").mkdir()
    for path in stdlib_files("train")[:4]:
        (tmp_path / "books" / path.with_suffix(".txt").name).write_bytes(path.read_bytes())
    (tmp_path / "held-out.txt").write_bytes(stdlib_files("heldout")[0].read_bytes())
    (tmp_path / "one.yaml").write_text("- perplexity: {windows: 2}\n")
    (tmp_path / "report.txt").write_bytes(stdlib_files("heldout")[0].read_bytes()[:600])
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/exit\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_readme_from_top_to_bottom(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran, names = [], {}
    for language, body in BLOCK.findall(README):
        if language == "python":
            exec(compile(body, "README.md", "exec"), names)
            ran.append("python")
            model = names["model"]
            prompt = torch.arange(1, 300)[None] % 256
            assert model.generate(prompt, max_new_tokens=2, do_sample=False).shape[1] == 301
            continue
        for command, *arguments in commands(f"```bash\n{body}```" if language == "bash" else ""):
            if command == "longwave":
                ran.append(arguments[0])
                assert main(arguments + SMALL[arguments[0]]) == 0, capsys.readouterr().err
    assert {"python", "train", "perplexity", "passkey", "compare", "generate", "chat"} <= set(ran)
    assert (workplace / "my-model-16x" / "longwave.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_and_commands_exist(document: Path) -> None:
    for command, *arguments in commands(document.read_text("utf-8")):
        if command == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif command == "longwave":
            assert main([arguments[0], "--help"]) == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_readme_lists_every_method_and_says_which_need_training() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (\w*) \|$", README, re.MULTILINE))
    assert set(rows) == set(METHODS)
    assert {name for name, training in rows.items() if training == "needed"} == {
        name for name, method in METHODS.items() if method.trained
    }


def test_readme_tree_names_what_is_there() -> None:
    (tree,) = (body for body in README.split("```\n") if body.startswith("src/longwave/"))
    package = [line.strip().split("  ") for line in tree.splitlines() if line.startswith("  ")]
    names = [name for words in package for name in words if re.fullmatch(r"\w+(\.py|/)", name)]
    assert len(names) > 10
    for name in names:
        assert any((ROOT / "src" / "longwave").rglob(name.rstrip("/"))), name


def test_extending_shows_a_method_that_works() -> None:
    names: dict[str, type] = {}
    (body,) = (b for language, b in BLOCK.findall((ROOT / "docs/extending.md").read_text("utf-8")) if "Linear" in b)
    exec(body, names)
    rope = Rope(torch.tensor([1.0, 0.1]), 64)
    mine, ours = names["Linear"](rope, 8), Linear(rope, 8)
    assert torch.equal(mine.log_freq(3.0), ours.log_freq(3.0))
    assert torch.equal(mine.rate(3.0), ours.rate(3.0))


CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
RENAMED = [line.strip(" |").split(" | ") for line in CHANGELOG.splitlines() if line.startswith("  | `")]
HOMES = (  # of names that the table writes without their module
    "longwave", "longwave.exporters", "longwave.exporters.exported", "longwave.exporters.base.Plan",
    "longwave.extensions.rotary",
)  # fmt: skip


def exists(name: str) -> bool:
    """Whether a dotted name exists. What follows `(model)` is looked for on the class of what the call returns."""
    value: Any = longwave
    for part in name.split(".")[1:]:
        plain, call, _ = part.partition("(")
        if plain in getattr(value, "__dataclass_fields__", {}):
            return True
        if not hasattr(value, plain):
            try:
                import_module(f"{getattr(value, '__name__', '')}.{plain}")
            except ImportError:
                return False
        value = getattr(value, plain)
        if call:
            value = getattr(import_module(value.__module__), inspect.signature(value).return_annotation)
    return True


@pytest.mark.parametrize("new", [row[1] for row in RENAMED], ids=[row[0] for row in RENAMED])
def test_a_new_name_of_the_changelog_exists(new: str) -> None:
    names = [re.sub(r"\((?!model\)).*\)", "", name) for name in re.findall(r"`([^`]+)`", new)]
    names = [name for name in names if not name.startswith("longwave ")]  # commands
    whole = [name for name in names if name.startswith("longwave.")]
    homes = [*whole, *(name.rpartition(".")[0] for name in whole), *HOMES]
    absent = [name for name in names if name not in whole and not any(exists(f"{home}.{name}") for home in homes)]
    assert [name for name in whole if not exists(name)] + absent == []
