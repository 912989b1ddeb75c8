"""LongPPL: equal to a computation by hand and to the library's own, from a suite, and refused where it cannot be."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import string
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import longwave
from longwave.checkpoints.folder import ModelFolder
from longwave.cli.main import main
from longwave.data.documents import read_documents
from longwave.data.tokens import stream_and_starts
from longwave.demo.run import BASE
from longwave.evaluation import keytokens
from longwave.evaluation.choice import Choice
from longwave.evaluation.keytokens import Evaluator, digest_of, evaluator_of
from longwave.evaluation.longppl import longppl
from longwave.evaluation.results import LONGPPL, read
from longwave.evaluation.texts import Texts

CHOICE = Choice(trunc_len=100, sliding_window=37, alpha=0.5, beta=-4.0)


@pytest.fixture(autouse=True)
def _package() -> None:
    pytest.importorskip("longppl", reason="needs the extra `eval`")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents of 512 to 1,023 tokens that repeat what a context of 140 tokens has just forgotten."""
    path = tmp_path_factory.mktemp("data") / "code.jsonl"
    texts = []
    for draw in (random.Random(0), random.Random(1)):
        names = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(12)]
        texts.append("".join(f"    {name} = {draw.randrange(1000)}\n" for name in names) * 5)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model (L = 256), extended to four times that: an evaluator."""
    model = longwave.extend(longwave.load(BASE, dtype=torch.float32), "ntk", max_factor=4)
    return longwave.save(
        model, tmp_path_factory.mktemp("long") / "evaluator", tokenizer=AutoTokenizer.from_pretrained(BASE)
    )


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return evaluator_of(str(folder), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def texts(data: Path) -> Texts:
    tokenizer, documents = AutoTokenizer.from_pretrained(BASE), read_documents([data])
    return Texts(tokenizer, documents, *stream_and_starts(documents, tokenizer))


@pytest.fixture
def model() -> PreTrainedModel:
    return longwave.extend(longwave.load(BASE, dtype=torch.float32), "yarn", max_factor=2)


def losses(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """-ln p of every token but the first, by a plain forward."""
    return cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")


@torch.no_grad()
def by_hand(model: torch.nn.Module, evaluator: Evaluator, ids: torch.Tensor, choice: Choice) -> tuple[float, int]:
    """Sum of the model's loss over key tokens, and how many there are: a short forward for every token."""
    whole, chosen = losses(evaluator.model, ids), []
    for place in range(choice.trunc_len, len(ids)):
        start = (place - choice.trunc_len) // choice.sliding_window * choice.sliding_window
        short = losses(evaluator.model, ids[start : place + 1])[-1]
        if short - whole[place - 1] > choice.alpha and whole[place - 1] < -choice.beta:
            chosen.append(place - 1)
    return float(losses(model, ids)[chosen].sum()), len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("sliding_window", [37, 31])  # with 31 the last step would be one token, which is left out
def test_value_by_hand_and_the_librarys(
    model: PreTrainedModel, evaluator: Evaluator, texts: Texts, sliding_window: int
) -> None:
    choice = Choice(CHOICE.trunc_len, sliding_window, CHOICE.alpha, CHOICE.beta)
    found = {entry.length: entry for entry in longppl(model, texts, [256, 512], evaluator=evaluator, choice=choice)}
    for length, entry in found.items():
        assert entry.ends == tuple(start + length for start in texts.starts)
        sums, counts = [], []
        for end in entry.ends:
            ids = texts.tokens[end - length : end]
            text, _ = texts.text(end - length, end)
            assert evaluator.encode(text)["input_ids"][0].equal(ids)
            cut = (length - choice.trunc_len) % sliding_window == 1
            nll, count = by_hand(model, evaluator, ids[:-1] if cut else ids, choice)
            sums.append(nll)
            counts.append(count)
        assert entry.tokens == tuple(counts) and min(counts) > 2
        assert entry.nll == pytest.approx(sums, rel=1e-5)
        shown = entry.to_json()
        assert shown["longppl"] == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-5)
        assert (shown["key_tokens"], shown["texts"], shown["windows"]) == (sum(counts), 2, 2)
    assert found[512].factor == 2
    assert sliding_window == 37 or (256 - 100) % sliding_window == 1


def test_one_text_is_the_librarys_value(model: PreTrainedModel, evaluator: Evaluator, texts: Texts) -> None:
    from longppl.longppl import compute_longppl

    (entry,) = longppl(model, texts, [512], evaluator=evaluator, choice=CHOICE, windows=1)
    text, _ = texts.text(0, 512)
    with redirect_stdout(io.StringIO()):
        theirs = compute_longppl(
            text, model, evaluator.model, texts.tokenizer, evaluator.tokenizer, trunc_len=CHOICE.trunc_len,
            sliding_window=CHOICE.sliding_window, alpha=CHOICE.alpha, beta=CHOICE.beta,
        )  # fmt: skip
    ours = entry.to_json()
    assert theirs["n_token"] == 512
    assert (ours["key_tokens"], ours["interval"]) == (theirs["n_key_token"], None)
    assert ours["longppl"] == pytest.approx(float(theirs["longppl"]), rel=1e-5)
    assert ours["ppl"] == pytest.approx(float(theirs["ppl"]), rel=1e-5)


def test_texts_are_those_of_their_tokens(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also within a document, at its end, and where a character is several tokens."""
    path = data.with_name("two.jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab é — cd", "second text")))
    documents = read_documents([path])
    texts = Texts(tokenizer, documents, *stream_and_starts(documents, tokenizer))
    size = texts.starts[1]
    assert texts.text(0, size) == ("ab é — cd", [*texts.text(0, size - 1)[1], (-1, -1)])
    assert texts.text(size + 2, size + 6) == ("cond", [(0, 1), (1, 2), (2, 3), (3, 4)])
    assert texts.text(4, 8)[0] == "é —"
    starts = [window.ends for window in texts.plan([3, 5], None)]
    assert starts == [tuple(place + n for place in (0, 5, size, size + 5)) for n in (3, 5)]


def test_the_files_of_an_evaluator_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], keytokens.fingerprint

    def fingerprint(found: ModelFolder) -> dict[str, str]:
        read.append(found.name)
        return real(found)

    monkeypatch.setattr(keytokens, "fingerprint", fingerprint)
    digest_of.cache_clear()
    assert digest_of(str(folder)) == digest_of(str(folder))
    assert read == [str(folder)]


def suite(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump([{"longppl": settings}]))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_suite(folder: Path, data: Path, texts: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"trunc_len": 100, "sliding_window": 37, "alpha": 0.5, "beta": -4}
    steps, out = suite(tmp_path / "suite.yaml", evaluator=str(folder), **asked), tmp_path / "out"
    common = ("evaluate", BASE, "--data", data, "--suite", steps, "--lengths", "2x", "-o", out)
    assert run(*common, "--methods", "ntk") == 0
    captured = capsys.readouterr()
    assert f"key tokens of evaluator {digest_of(str(folder))[:8]}, 2 texts" in " ".join(captured.out.split())
    assert "[1/1] longppl, ntk: " in captured.err
    shutil.copytree(folder, tmp_path / "renamed")  # the same evaluator, wherever it lies
    suite(steps, evaluator=str(tmp_path / "renamed"), **asked)
    assert run(*common, "--methods", "ntk,none") == 0
    assert "1 of 2 cells were finished before" in capsys.readouterr().err
    found = read(out / "longppl.json", LONGPPL)
    settings = {**asked, "windows": None, "evaluator_digest": digest_of(str(folder))}
    assert found["settings"] == {**settings, "package": "longppl 0.3.0", "tokens": len(texts.tokens)}
    ntk, none = (row["lengths"][0] for row in found["rows"])
    # An evaluator that is the measured row itself: its losses are those that it judged the tokens by.
    evaluator = evaluator_of(str(folder), torch.float32, torch.device("cpu"))
    (own,) = longppl(longwave.load(folder, dtype=torch.float32), texts, [512], evaluator=evaluator, choice=CHOICE)
    assert ntk["longppl"] == pytest.approx(own.to_json()["longppl"], rel=1e-5)
    assert ntk["tokens"] == none["tokens"] and ntk["longppl"] < none["longppl"]
    page = (out / "report.html").read_text()
    assert all(part in page for part in ("LongPPL · code.jsonl", "ntk has the lowest LongPPL", "evaluator digest"))
    assert (out / "longppl.png").stat().st_size > 10_000
    assert run("plot", out / "longppl.json") == 0
    other = suite(tmp_path / "other.yaml", evaluator=str(BASE), **asked)
    assert run(*common[:4], "--suite", other, *common[6:], "--methods", "ntk") == 1  # another evaluator, other cells
    assert "(ntk, none)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "LongPPL needs an evaluator, a model with a long context. Name it in the suite"),
        ({"evaluator": "./absent"}, "absent"),
        ({"evaluator": 3}, "evaluator of longppl must be text, got 3"),
        ({"evaluator": "BASE", "alpha": "much"}, "alpha of longppl must be a finite number, got 'much'"),
        ({"evaluator": "BASE", "beta": math.nan}, "beta of longppl must be a finite number, got nan"),
        ({"evaluator": "BASE"}, "LongPPL at length 512 needs a trunc_len below that, got 4096"),
        ({"evaluator": "BASE", "trunc_len": 64, "sliding_window": 1}, "sliding_window at least 2, got 64 and 1"),
        ({"evaluator": "BASE", "trunc_len": 64}, "reads 256 tokens, and a text has 512 of its tokens"),
        ({"evaluator": "BASE", "trunc_len": 64, "windows": 9}, "room for 2 windows, not 9"),
        ({"evaluator": "LONG", "trunc_len": 64, "alpha": 99}, "finds no key token in 2 texts of 512 tokens"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    settings: dict[str, object], message: str,
) -> None:  # fmt: skip
    named = {"BASE": str(BASE), "LONG": str(folder)}
    if "evaluator" in settings:
        settings = {**settings, "evaluator": named.get(str(settings["evaluator"]), settings["evaluator"])}
    steps = suite(tmp_path / "suite.yaml", **settings)
    assert run("evaluate", BASE, "--data", data, "--suite", steps, "--lengths", "2x", "--methods", "ntk",
               "-o", tmp_path / "out") == 1  # fmt: skip
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 2


def test_without_the_package(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "longppl.longppl", None)
    steps = suite(tmp_path / "suite.yaml", evaluator=str(folder))
    assert run("evaluate", BASE, "--data", data, "--suite", steps, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "key tokens are found by longppl" in error and "pip install 'longwave[eval]'" in error
    assert error.count("\n") <= 2
