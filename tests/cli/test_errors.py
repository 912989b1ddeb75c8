"""Whatever is raised, by whichever library, is one line and exit code 1."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pyarrow
import pytest
import tokenizers
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load as load_safetensors

import longwave
from longwave.cli.errors import explain
from longwave.cli.main import main
from longwave.schedule import factor_of


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def entry() -> None:
    raise EntryNotFoundError("404: no such file\n\nEntry not found for url")


def ours(code: str) -> None:
    """Run code as a line of a file of longwave."""
    path = str(Path(longwave.__file__).parent / "absent.py")
    linecache.cache[path] = (len(code), None, [code], path)
    exec(compile(code, path, "exec"))


def explain_missing(module: str) -> None:
    raise ModuleNotFoundError(f"No module named {module!r}", name=module)


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "memory of torch": (lambda: torch.empty(2**60), "the memory does not suffice ("),
    "memory of python": (lambda: bytearray(2**62), "the memory does not suffice ("),
    "shapes": (lambda: torch.ones(2, 3) @ torch.ones(2, 3), "a library gave up (RuntimeError: "),
    "safetensors": (lambda: load_safetensors(b"no tensors"), "safetensors gave up (SafetensorError: "),
    "tokenizers": (lambda: tokenizers.Tokenizer.from_str("{}"), "a library gave up (Exception: "),
    "hub": (entry, "huggingface_hub gave up (EntryNotFoundError: 404: no such file)."),
    "offline hub": (lambda: hf_hub_download("me/absent", "config.json"), "in the local cache"),
    "pyarrow": (
        lambda: pyarrow.array(["a"]).cast(pyarrow.list_(pyarrow.int8())),
        "pyarrow gave up (ArrowNotImplementedError: ",
    ),
    "pyarrow value": (lambda: pyarrow.array(["a"]).cast(pyarrow.int8()), "Failed to parse string: 'a'"),
    "jinja2": (lambda: jinja2.Template("{{ a.b.c }}").render(), "jinja2 gave up (UndefinedError: 'a' is undefined"),
    "package": (
        lambda: importlib.import_module("absent_package.part"),
        "a package is missing or does not work: No module named 'absent_package'. Run: pip install absent_package.",
    ),
    "package of another name": (
        lambda: explain_missing("yaml"), "No module named 'yaml'. Run: pip install PyYAML.",
    ),
    "name in a package": (
        lambda: exec("from transformers import Absent"), "Run: pip install --upgrade transformers.",
    ),
    "debian": (
        lambda: exec(compile("{}['x']", "/usr/lib/python3/dist-packages/foo/bar.py", "exec")),
        "foo gave up (KeyError: ",
    ),
    "ours, raised": (lambda: ours("raise RuntimeError('no rows')"), "this is a fault of longwave, not yours ("),
    "ours, unpacked": (lambda: ours("a, b = [1]"), "this is a fault of longwave, not yours (ValueError: not enough"),
    "ours": (lambda: factor_of("long", None), "this is a fault of longwave, not yours (TypeError: "),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_error_is_one_line(case: str) -> None:
    call, message = CASES[case]
    said = explain(raised(call))
    assert message in said and said and "\n" not in said.strip() and "Traceback" not in said


def test_a_fault_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("longwave.methods.METHODS", None)
    assert main(["methods"]) == 1
    given = capsys.readouterr()
    assert given.err.startswith("error: this is a fault of longwave, not yours (AttributeError: ")
    assert given.err.endswith("Run the command again with --debug, and report what it prints.\n")
    assert given.err.count("\n") == 1
    with pytest.raises(AttributeError):
        main(["methods", "--debug"])


FAILING = {
    "divides": ("{{ 1 // 0 }}", "the tokenizer's chat template fails (ZeroDivisionError: "),
    "undefined": ("{{ tools.x.y }}", "the tokenizer's chat template fails (UndefinedError: "),
    "syntax": ("{% if %}", "the tokenizer's chat template fails (TemplateSyntaxError: "),
    "adds": ("{{ messages + 'x' }}", "the tokenizer's chat template fails (TypeError: "),
    "speaks": ("{{ raise_exception('no roles') }}", "chat template refuses these messages: no roles"),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_chat_template_that_fails(
    how: str, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    template, message = FAILING[how]
    (plain / "chat_template.jinja").write_text(template)
    lines = iter(["hello\n", "again\n", ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    assert main(["chat", str(plain)]) == 1  # turns from a pipe, none of them answered
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 2 and all(message in line for line in said)  # each turn is told, and the chat goes on


@pytest.mark.slow
def test_nothing_but_json_comes_on_stdout_where_deepspeed_is_installed() -> None:
    """It logs to stdout when it is imported, which PEFT does."""
    pytest.importorskip("deepspeed")
    code = "from longwave.cli.notes import notes\nwith notes():\n    import deepspeed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
