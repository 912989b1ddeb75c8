"""A comparison is planned without weights: what can be refused is refused before a first cell is measured."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import longwave
from longwave.checkpoints import plain as plain_models
from longwave.checkpoints.outline import outline
from longwave.evaluation import comparison as module
from longwave.evaluation.base import Inputs, Measured, Progress
from longwave.evaluation.candidates import Candidate
from longwave.evaluation.cells import Cell
from longwave.evaluation.comparison import Comparison
from longwave.evaluation.passkey import PasskeyEvaluation, PasskeySettings
from longwave.evaluation.suites import Step, parse_suite
from longwave.extensions.handle import rotaries
from longwave.models import open_model

SUITE = "- perplexity: {windows: 2, targets: 16}\n- passkey: {trials: 2, depths: 2}\n  lengths: 3x\n"
SUITE += "- needle: {trials: 2, depths: 2}\n  lengths: 3x\n"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book. " for i in range(60)))
    return path


def ignore(_: Cell) -> Callable[[int], None]:
    return lambda tokens: None


def compared(folder: Path, *paths: Path, data: Iterable[Path] = (), suite: str = SUITE, **options: Any) -> Comparison:
    methods = options.pop("methods", ("none", "ntk"))
    candidates = [Candidate(str(path), path.name, methods) for path in paths]
    load = options.pop("load", lambda path: open_model(path, "float32", "cpu"))
    return Comparison(
        candidates, parse_suite(suite, "test"), folder, load, list(data), **{"lengths": "1x,2x"} | options
    )


@pytest.fixture
def other(plain: Path, tmp_path: Path) -> Path:
    """Other weights, the same tokenizer."""
    folder = shutil.copytree(plain, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.1 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the data are hashed, read and tokenised, and weights are loaded: the real functions, counted."""
    found: Counter[str] = Counter()

    def count(where: Any, name: str) -> None:
        real = getattr(where, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, counted)

    for name in ("data_hashes", "read_documents", "tokenise"):
        count(module, name)
    count(plain_models.AutoModelForCausalLM, "from_pretrained")
    return found


def test_twelve_cells_of_two_models(plain: Path, other: Path, book: Path, tmp_path: Path, counts: Counter[str]) -> None:
    asked = compared(tmp_path / "out", plain, other, data=[book])
    assert len(asked.cells) == 12
    assert asked.cost() > 0
    assert counts == {"data_hashes": 1, "read_documents": 1, "tokenise": 1}  # and no weights
    asked.run(ignore)
    assert not asked.missing() and set(asked.records()) == {"perplexity", "passkey", "needle"}
    assert counts == {"data_hashes": 1, "read_documents": 1, "tokenise": 1, "from_pretrained": 2}
    assert compared(tmp_path / "out", plain, other, data=[book]).missing() == []


def test_a_text_for_each_tokenizer(
    plain: Path, other: Path, book: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, counts: Counter[str]
) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["book"])  # has no row, so leave one out of the text
    changed.save_pretrained(other)
    book.write_text(book.read_text().replace("book", "page"))
    asked = compared(tmp_path / "out", plain, other, data=[book])
    asked.cost()
    assert counts["tokenise"] == 2


def test_cells_of_a_model_stand_together(plain: Path, other: Path, tmp_path: Path, counts: Counter[str]) -> None:
    suite = "- passkey: {trials: 2, depths: 2}\n  lengths: 3x\n"
    asked = compared(tmp_path / "out", plain, other, plain, suite=suite)
    for index, methods in enumerate((("none",), ("none",), ("ntk",))):
        asked.candidates = [*asked.candidates]
        asked.candidates[index] = Candidate(asked.candidates[index].path, f"row {index}", methods)
    asked.run(ignore)
    assert counts["from_pretrained"] == 2
    assert [row["label"] for row in asked.records()["passkey"]["rows"]] == ["row 0", "row 1", "row 2"]


def test_what_cannot_be_had_without_weights_is_loaded(
    plain: Path, book: Path, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays for its cells."""
    monkeypatch.setattr(module, "outline", lambda path: None)
    asked = compared(tmp_path / "out", plain, data=[book])
    asked.cost()
    asked.run(ignore)
    assert counts["from_pretrained"] == 1


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            "- passkey: {template: shrt}\n  lengths: 3x",
            "template of passkey must be one of short, landmark",
        ),
        ("- passkey: {trials: 2}\n  lengths: 1x", r"a prompt needs \d+ tokens, more than the length 64"),
        ("- passkey: {trials: 0}\n  lengths: 3x", "trials and depths must be at least 1, got 0 and 10"),
        ("- needle: {trials: 2}\n  lengths: 100x", r"the haystack has \d+ tokens, fewer than the \d+ that a prompt"),
        ("- needle: {trials: 2, depths: 70}\n  lengths: 3x", "the haystack has 60 sentences, too few for 70 depths"),
        ("- needle: {needle: It is 5.}\n  lengths: 3x", "the needle must use {key}"),
        ("- perplexity: {windows: 2}\n  name: far\n  lengths: 100x", "fewer than one window of 6400"),
        (
            "- perplexity: {protocol: oddly}\n  name: odd\n",
            "must be one of same-targets, .*, got 'oddly'",
        ),
        ("- longppl: {evaluator: ./absent}", "absent"),
        ("- longppl: {evaluator: EMPTY, trunc_len: 8}", "holds no tokenizer"),
    ],
)
def test_a_step_that_cannot_be_measured(
    plain: Path, book: Path, tmp_path: Path, counts: Counter[str], suite: str, message: str
) -> None:
    if "longppl" in suite:
        pytest.importorskip("longppl", reason="needs the extra `eval`")
    (tmp_path / "empty").mkdir()
    suite = "- perplexity: {windows: 2, targets: 16}\n" + suite.replace("EMPTY", str(tmp_path / "empty")) + "\n"
    with pytest.raises(ValueError, match=message):
        compared(tmp_path / "out", plain, data=[book], suite=suite).cost()
    assert "from_pretrained" not in counts and not (tmp_path / "out").exists()


def damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_tokens(folder: Path) -> None:
    """Three bytes that no text has give their ids to pairs of letters."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    words = {id: word for word, id in state["model"]["vocab"].items()}
    pairs = ("Li", "in", "of")
    words |= dict(zip((200, 201, 202), pairs, strict=True))
    state["model"] |= {"vocab": {word: id for id, word in words.items()}, "merges": [list(pair) for pair in pairs]}
    path.write_text(json.dumps(state))


def lost_rows(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["book"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, r"other.model\.safetensors is damaged"),
        (lacking, r"holds no weights for model\.layers\.1\.mlp\.up_proj\.weight"),
        (no_weights, "cannot load a model from .*other: .*model.safetensors"),
        (other_tokens, r"differ in their settings \(tokens \d+ of plain and \d+ of other\) and cannot be compared"),
        (lost_rows, r"there is no embedding row for 256 \(book\)"),
        (no_tokenizer, "other holds no tokenizer"),
    ],
)
def test_a_second_model_that_cannot_be_measured(
    plain: Path, other: Path, book: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    """Without the first one's cells having been measured."""
    change(other)
    with pytest.raises(ValueError, match=message):
        compared(tmp_path / "out", plain, other, data=[book]).cost()
    assert not (tmp_path / "out").exists()


def test_finished_cells_count_too(plain: Path, other: Path, book: Path, tmp_path: Path) -> None:
    compared(tmp_path / "out", plain, data=[book]).run(ignore)
    other_tokens(other)
    with pytest.raises(ValueError, match="differ in their settings"):
        compared(tmp_path / "out", plain, other, data=[book]).cost()


def test_lengths_beyond_a_method(plain: Path, trained: Path, book: Path, tmp_path: Path, counts: Counter[str]) -> None:
    asked = compared(tmp_path / "out", plain, trained, data=[book], methods=("own", "none"), lengths="8x")
    with pytest.raises(ValueError, match="length 512 is beyond the maximum of 256 tokens"):
        asked.cost()
    with pytest.raises(ValueError, match="clex needs trained weights"):
        compared(tmp_path / "out", plain, data=[book], methods=("clex",)).cost()
    with pytest.raises(ValueError, match="tokens per batch must be at least 1, got 0"):
        compared(tmp_path / "out", plain, data=[book], tokens_per_batch=0).cost()
    assert "from_pretrained" not in counts


def test_an_outline_is_the_model_without_weights(plain: Path, trained: Path) -> None:
    sketch, whole = outline(str(trained)), longwave.load(trained)
    assert sketch is not None and sketch.lm_head.weight.is_meta
    assert rotaries(sketch)[0].trajectory.name == "clex"
    assert torch.equal(rotaries(sketch)[0].trajectory.at(3.0).inv_freq, rotaries(whole)[0].trajectory.at(3.0).inv_freq)
    (plain / "config.json").unlink()
    assert outline(str(plain)) is None and outline("./absent") is None


def test_an_evaluation_that_yields_is_read_under_its_method(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that is read when the method is off again would measure the plain model."""

    class Factor:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def to_json(self) -> dict[str, Any]:
            return {"length": 128, "factor": self.factor, "rate": 0.0, "interval": [0, 0], "trials": 1,
                    "by_depth": [], "depths": [0.0], "correct": [False]}  # fmt: skip

    class Lazily(PasskeyEvaluation):
        def measure(self, inputs: Inputs, settings: PasskeySettings, progress: Progress) -> Iterator[Measured]:
            for length in inputs.lengths:
                yield Factor(rotaries(inputs.model)[0].factor_for(length))

    step = Step("passkey", Lazily(), PasskeySettings(), "3x")
    asked = compared(tmp_path / "out", plain, methods=("ntk",), suite="- passkey\n")
    asked.steps = [step]
    asked.run(ignore)
    (row,) = asked.records()["passkey"]["rows"]
    assert row["lengths"][0]["factor"] == 3.0
