"""`longwave report` from the command line, on what the other commands wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.cli.main import main
from longwave.report import trajectories
from longwave.report.distances import lines
from longwave.report.trajectories import drawn_of_model


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def results(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a real record of each kind, of a random model, and files that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("".join(f"Line {i} of the book. " for i in range(60)))
    common = ("--lengths", "2x,4x", "--methods", "none,ntk")
    assert run("perplexity", plain, "--data", "book.txt", "--windows", 4, *common, "-o", "results/ppl") == 0
    assert run("passkey", plain, "--trials", 4, *common, "-o", "results/deep/passkey") == 0
    (tmp_path / "results" / "config.json").write_text('{"schema": "of somebody else"}')
    (tmp_path / "results" / "broken.json").write_text("{")
    return tmp_path / "results"


@pytest.mark.slow
def test_a_folder_with_a_training_run_and_a_model(
    results: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": k, "loss": 3 - k / 10, "lr": 1e-4, "grad_norm": 1.0, "tokens": k} for k in range(1, 9)]
    (results / "run").mkdir()
    (results / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hidden = results / ".hidden"
    hidden.mkdir()
    (hidden / "perplexity.json").write_text('{"schema": "longwave.perplexity/1"')
    given = ("report", results, results / "ppl", "--model", trained, "--methods", "none,ntk@ceiling,clex")
    assert run(*given, "--title", "A <b>title</b>", "-o", "pages/a.html") == 0
    assert "written: pages/a.html" in capsys.readouterr().out
    text = Path("pages/a.html").read_text()
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text
    headings = re.findall(r'<h2 id="s\d">(.*?)</h2>', text)
    assert headings == ["Perplexity · same-targets · book.txt", "Passkey retrieval · short", "Training · run",
                        "Frequencies · none, ntk, clex"]  # fmt: skip
    assert text.count("What made it: results/ppl/perplexity.json") == 1
    assert "2 records, 1 training run, 3 trajectories" in text


def test_records_alone_and_an_output_that_exists(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("report", results / "ppl" / "perplexity.json", "-o", "a.html")
    assert run(*given) == 0
    before = Path("a.html").read_bytes()
    assert run(*given, "--title", "other") == 1
    assert "a.html exists. Choose another name or pass --overwrite." in capsys.readouterr().err
    assert Path("a.html").read_bytes() == before
    assert run(*given, "--title", "other", "--overwrite") == 0
    assert "<title>other</title>" in Path("a.html").read_text()


@pytest.mark.slow
def test_a_plain_model_alone(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", "--model", plain) == 0
    assert "Frequencies · none, linear, ntk, yarn" in Path("report.html").read_text()


def test_frequencies_are_drawn_without_the_weights(plain: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    for path in map(str, (plain, trained)):
        with monkeypatch.context() as changed:
            changed.setattr(trajectories, "outline", lambda _: None)
            whole = drawn_of_model(path).trajectories
        with monkeypatch.context() as changed:
            changed.setattr(trajectories, "load", fails)
            found = drawn_of_model(path).trajectories
        assert list(found) == list(whole) and len(found) >= 4
        for name, trajectory in found.items():
            assert torch.equal(trajectory.at(3.0).inv_freq, whole[name].at(3.0).inv_freq)


def test_no_methods_are_no_trajectories(plain: Path) -> None:
    assert drawn_of_model(str(plain), []).trajectories == {}


def test_what_cannot_be_shown_is_an_error(
    results: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (results / "ppl" / "cut.json").write_text((results / "ppl" / "perplexity.json").read_text()[:400])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n')
    for arguments, complaint in (
        ([], "nothing to report"),
        (["missing"], "missing does not exist"),
        (["empty"], "folder empty holds no record"),
        (["book.txt"], "book.txt is neither a record"),
        ([results / "config.json"], "config.json has schema 'of somebody else'"),
        ([results / "broken.json"], "broken.json is not valid JSON"),
        ([results], "cut.json is not valid JSON"),
        (["metrics.jsonl"], "metrics.jsonl is damaged"),
        ([results / "deep", "-o", "page.pdf"], "must end in .html"),
        ([results / "deep", "--methods", "ntk"], "Pass a model too"),
        (
            ["--model", plain, "--methods", "none,clex"],
            f"clex needs trained weights, and {plain} has none. Leave it out of --methods.",
        ),
        (["--model", plain, "--methods", "ntl"], "Did you mean 'ntk'?"),
        (["--model", plain, "--methods", ","], "no methods given"),
    ):
        assert run("report", *arguments) == 1, arguments
        assert complaint in " ".join(capsys.readouterr().err.split()), arguments
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_attention_methods_are_drawn_with_their_distances(plain: Path, tmp_path: Path) -> None:
    """Without weights; the frequencies of an attention method are those below it, and `none` below it is none."""
    methods = "none,ntk,two-band,yarn+dca,self-extend,streaming-llm"
    out = tmp_path / "page.html"
    assert main(["report", "--model", str(plain), "--methods", methods, "-o", str(out)]) == 0
    text = out.read_text()
    assert "4 trajectories, 4 attention methods" not in text  # yarn below dca is asked for t = 1
    assert "3 trajectories, 4 attention methods" in text
    assert "Distances · two-band, yarn+dca, self-extend, streaming-llm" in text
    assert "streaming-llm at t = 16: no key is farther than 0.98 L for the model. Keys between its bands are" in text
    assert "two-band at t = 16: no key is farther than 0.7" in text


def test_methods_that_choose_their_keys_are_not_said_to_see_all(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", "--model", str(plain), "--methods", "two-band,token-select,infllm", "-o", str(out)]) == 0
    said = {line.split(" at t")[0]: line for line in re.findall(r"[\w-]+ at t = [^<]*", out.read_text())}
    assert said["two-band"].endswith("for the model. All keys are seen.")
    for method in ("token-select", "infllm"):
        assert said[method].endswith("for the model. The method chooses which keys are seen.")


def test_distances_are_those_of_the_bands(plain: Path) -> None:
    found = drawn_of_model(str(plain), ["two-band", "streaming-llm", "linear"])
    assert list(found.trajectories) == ["two-band", "linear"]
    near, far = lines(found.banded["two-band"], 4.0)
    w, f = 16, (4 * 64 - 16) / (0.75 * 64 - 16)
    assert torch.equal(near.seen[:w], near.true[:w]) and bool(near.seen[w:].isnan().all())
    torch.testing.assert_close(far.seen[w:], w + (far.true[w:] - w) / f)
    window, first = (~line.seen.isnan() for line in lines(found.banded["streaming-llm"], 4.0))
    assert int(window.sum()) + int(first.sum()) == 64 and not bool((window & first).any())
    assert bool(first[-1]) and not bool((window | first)[100])


def test_a_folder_saved_with_an_attention_method_is_drawn_as_it_is(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    longwave.save(longwave.extend(llama, "two-band", max_factor=4, window=8), tmp_path / "out", tokenizer=tokenizer)
    found = drawn_of_model(str(tmp_path / "out"))
    assert list(found.banded) == ["two-band"] and next(iter(found.trajectories)) == "two-band"
    assert found.banded["two-band"].attention.options()["window"] == 8
