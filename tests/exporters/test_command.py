"""`longwave export` from the command line, with good and bad input."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import longwave
from longwave.cli.export import export as command
from longwave.cli.main import main
from longwave.exporters import EXPORTERS, Plan, get_exporter
from longwave.exporters.hf import HF
from longwave.exporters.run import export
from longwave.exporters.source import Source
from longwave.exporters.verify import Agreement
from longwave.files import read_json, sha256
from longwave.trajectory import Snapshot


@pytest.mark.slow
def test_the_folder_is_complete(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "--factor", "3", "-o", str(out), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["factor"], told["length"]) == (3.0, 192)
    assert told["agreement"]["equal"] == told["agreement"]["total"] and told["agreement"]["max_difference"] == 0
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    card = (out / "README.md").read_text()
    for part in (
        "vllm serve out --max-model-len 192",
        "sglang",
        "`clex`",
        "greedy tokens equal",
        "length factor t | 3",
    ):
        assert part in card
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_perplexity_record_goes_into_the_card(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    results = tmp_path / "results"
    asked = f"perplexity {trained} --data {text} --lengths 1x,2x --windows 4 --targets 32 -o {results}"
    assert main(asked.split()) == 0
    record = read_json(results / "perplexity.json")
    done = export(trained, tmp_path / "out", results=[results / "perplexity.json"])
    ppl = record["rows"][0]["lengths"][1]["ppl"]
    assert f"| {ppl:.4g} |" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record["rows"][0]["lengths"][0].pop("ppl"), "is damaged: an entry of lengths lacks ppl"),
        (lambda record: record["rows"][0]["lengths"][0].update(ppl="low"), "is damaged: ppl is 'low' where a number"),
        (lambda record: record["rows"][0]["lengths"][0].update(ppl=float("nan")), "is damaged: ppl is nan where a"),
        (lambda record: record["rows"][0]["lengths"][0].update(length=True), "is damaged: length is True where a"),
        (lambda record: record["rows"][0].update(lengths=[]), "its lengths must be a list that is not empty"),
        (lambda record: record["rows"][0].update(label=7), "is damaged: label is 7 where text must be"),
        (lambda record: record.update(data=["text.txt"]), "is damaged: its data must be an object or null"),
        (lambda record: record.update(data={"text.txt": 5}), "is damaged: text.txt is 5 where text must be"),
        (lambda record: record.update(settings=3), "is damaged: settings lacks protocol"),
        (lambda record: record.update(rows=[1]), "is damaged: a row lacks label, lengths"),
        (lambda record: record.pop("rows"), "is damaged: the record lacks rows"),
        (lambda record: record.update(schema="longwave.passkey/1"), "is no record of `longwave perplexity`. Give its"),
    ],
)
def test_a_damaged_record_is_told_before_the_work(damage, message: str, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    entry = {"length": 64, "ppl": 5.0}
    record = {"schema": "longwave.perplexity/1", "rows": [{"label": "ntk", "lengths": [entry]}],
              "data": {"text.txt": "5f"}, "settings": {"protocol": "stride"}}  # fmt: skip
    path, steps = tmp_path / "perplexity.json", list[str]()
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=re.escape(f"{path} ")) as error:
        export(trained, tmp_path / "out", results=[path], tell=steps.append)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert steps == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "5"], "factor 5 is not within 1 to 4"),
        (["--factor", "0.5"], "factor 0.5 is not within 1 to 4"),
        (["--to", "999"], "length 999 is not within 1 to 256 tokens"),
        (["--to", "128", "--factor", "2"], "not both"),
        (["--quantize", "q8_0"], "hf has no quantization 'q8_0'"),
        (["--method", "yarn"], "has its own extension"),
    ],
)
def test_refused(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "-o", str(out), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_existing_output_stays(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):  # what is no export of ours is nobody's to replace
        with pytest.raises(ValueError, match="not empty"):
            export(trained, out, overwrite=overwrite)
    assert (out / "mine.txt").read_text() == "mine"


def test_an_export_is_replaced_as_a_whole(trained: Path, tmp_path: Path) -> None:
    out = export(trained, tmp_path / "out", factor=2).folder
    (out / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="not empty"):
        export(trained, out)
    assert export(trained, out, factor=4, overwrite=True).folder == out
    assert read_json(out / "config.json")["max_position_embeddings"] == 256 and not (out / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("place", ["trained", "trained/model", "trained/model/out", "."])
def test_the_source_outlives_the_export(place: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "longwave-export.json").write_text("{}")  # even where a folder says that it may be replaced
    (trained / "longwave-export.json").write_text("{}")
    (trained / "model" / "longwave-export.json").write_text("{}")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="one another"):
        export(trained, tmp_path / place, overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_places_that_cannot_be_replaced(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="cannot be replaced"):
        export(trained, ".")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert export(trained, tmp_path / "link").folder == tmp_path / "target"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link" / "config.json").is_file()


def test_permissions_follow_the_umask(trained: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = export(trained, tmp_path / "out").folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    before = os.umask(0o022)
    try:
        folder = export(trained, tmp_path / "shared").folder
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _cut(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _without(folder, "tokenizer.json"), "holds no tokenizer"),
        (lambda folder: _cut(folder, "model/model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: _without(folder, "model/model.safetensors"), "neither model.safetensors nor"),
        (lambda folder: _without(folder, "longwave.json"), "longwave.json is missing"),
        (lambda folder: _cut(folder, "longwave.safetensors"), "longwave.safetensors is damaged"),
        (lambda folder: _cut(folder, "model/config.json"), "config.json is not valid JSON"),
    ],
)
def test_a_damaged_source_is_named(spoil, message: str, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spoil(trained)
    with pytest.raises(ValueError, match=message):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["hf", "ctranslate2"])
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("training.json", "[1]", "holds no JSON object, but a list"),
        ("training.json", '{"data": ["x"]}', "is damaged: its data must be an object or null"),
        ("training.json", '{"data": {"x": 5}}', "is damaged: x is 5 where text must be"),
        ("training.json", '{"config": 3}', "is damaged: its config must be an object or null"),
        ("training.json", '{"result": {"tokens": "many"}}', "is damaged: tokens is 'many' where a number must be"),
        ("training.json", '{"command": 5}', "is damaged: command is 5 where text must be"),
        ("training.json", '{"command": "longwave \'train"}', "is damaged: command is no line of a shell"),
        ("model/generation_config.json", "[1]", "holds no JSON object, but a list"),
        ("generation_config.json", "3", "holds no JSON object, but a int"),
        ("tokenizer_config.json", "[1]", "holds no JSON object, but a list"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_told_before_they_are_written(
    file: str, text: str, message: str, target: str, trained: Path, tmp_path: Path
) -> None:
    if target == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="needs the extra ctranslate2")
    (trained / file).write_text(text)
    steps = list[str]()
    with pytest.raises(ValueError, match=re.escape(f"{trained / file} ")) as error:
        export(trained, tmp_path / "out", target=target, factor=2, tell=steps.append)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "writing" not in steps


def test_a_missing_shard_is_named(plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").rename(plain / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00001-of-00002.safetensors lacks a"):
        export(plain, tmp_path / "out", method="ntk")
    index["weight_map"].pop("a")
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00002-of-00002.safetensors is missing"):
        export(plain, tmp_path / "out", method="ntk")


def test_one_file_of_weights_comes_before_an_index(plain: Path, tmp_path: Path) -> None:
    """As transformers reads it, which itself leaves the index of an earlier save behind."""
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = export(plain, tmp_path / "out", method="ntk").folder
    assert sha256(folder / "model.safetensors") == sha256(plain / "model.safetensors")
    assert not (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    "index", [{}, [], {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "sub/x.safetensors"}},
              {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": "x.bin"}}],
)  # fmt: skip
def test_an_index_names_files_of_its_folder(index: object, plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").unlink()
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json (has no weight_map|names)"):
        export(plain, tmp_path / "out", method="ntk")


def test_weights_that_are_not_the_models_are_named(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no weights for model\.norm\.weight"):
        export(plain, tmp_path / "out", method="ntk")
    save_file(
        {**tensors, "model.norm.weight": norm[:3].clone()}, plain / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[3\], by config.json it is \[64\]"):
        export(plain, tmp_path / "out", method="ntk")


def test_only_what_belongs_to_the_model_goes_along(trained: Path, tmp_path: Path) -> None:
    (trained / "secrets.json").write_text("{}")
    (trained / "model" / "notes.txt").write_text("notes")
    (trained / "LICENSE").write_text("MIT")
    (trained / "model" / "generation_config.json").write_text('{"max_length": 64, "temperature": 0.5}')
    training = {"model": "/home/me/base", "command": "longwave train /home/me/base --data /home/me/books -o out"}
    (trained / "training.json").write_text(json.dumps(training))
    folder = export(trained, tmp_path / "out").folder
    names = {path.name for path in folder.iterdir()}
    assert "LICENSE" in names and not names & {"secrets.json", "notes.txt", "training.json", "longwave.json"}
    assert read_json(folder / "generation_config.json") == {"temperature": 0.5}
    card = (folder / "README.md").read_text()
    assert "longwave train base --data books -o out" in card and "/home/me" not in card


def test_an_adapter_is_refused(plain: Path, tmp_path: Path) -> None:
    (plain / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Merge it into its model"):
        export(plain, tmp_path / "out", method="ntk")


@pytest.mark.parametrize("length", [65, 100, 127, 129, 255])
def test_a_length_is_the_length_of_the_export(length: int, plain: Path, trained: Path, tmp_path: Path) -> None:
    for name, method in (("plain", "yarn"), ("trained", None)):
        folder = export(tmp_path / name, tmp_path / f"out-{name}", method=method, to=length).folder
        assert read_json(folder / "config.json")["max_position_embeddings"] == length


@pytest.mark.slow
def test_what_an_engine_denies_is_not_kept(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(HF):
        """Forgets the factors."""

        def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
            ones = torch.ones_like(snapshot.factors)
            return super().plan(source, replace(snapshot, factors=ones), quantize)

    monkeypatch.setitem(EXPORTERS, "wrong", Wrong())
    with pytest.raises(ValueError, match="does not agree with longwave, and nothing was kept"):
        export(trained, tmp_path / "out", target="wrong", verify=True)
    assert not (tmp_path / "out").exists()


def test_agreement_is_judged_by_what_the_engine_shows() -> None:
    agreement = Agreement("engine", [8], 4, equal=3, total=4, max_difference=0.2)
    agreement.check(0.3)
    agreement.check(None)
    for wrong, tolerance in (
        (agreement, 0.1),
        (replace(agreement, max_difference=None), 0.1),
        (replace(agreement, equal=1), None),
    ):
        with pytest.raises(ValueError, match="does not agree"):
            wrong.check(tolerance)


def test_an_export_knows_its_own_t_alone(trained: Path, tmp_path: Path) -> None:
    short = export(trained, tmp_path / "short", to=100)
    first = export(trained, tmp_path / "first", factor=3)
    for once in (short, first):
        again = export(once.folder, tmp_path / "again", overwrite=True)
        assert read_json(again.folder / "config.json") == read_json(once.folder / "config.json")
    with pytest.raises(ValueError, match="an export at t = 3, and knows no other"):
        export(first.folder, tmp_path / "other", factor=2)
    with pytest.raises(ValueError, match="log-n as a constant"):
        export(first.folder, tmp_path / "other", log_n="drop")


def test_a_scaled_checkpoint_keeps_its_length(tmp_path: Path, llama, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Llama 3.1 has factor 8 of 8,192 tokens, and reads 131,072."""
    rope = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig(**{**llama.config.to_dict(), "rope_parameters": rope, "max_position_embeddings": 1024})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "scaled")
    tokenizer.save_pretrained(tmp_path / "scaled")
    for name, length in (("default", None), ("asked", 1000)):
        folder = export(tmp_path / "scaled", tmp_path / name, to=length).folder
        assert read_json(folder / "config.json")["max_position_embeddings"] == (length or 1024)


def test_a_plain_model_needs_a_method(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain model\. Say what to export it with"):
        export(plain, tmp_path / "out")
    with pytest.raises(ValueError, match="needs trained weights"):
        export(plain, tmp_path / "out", method="clex")


def test_what_another_engine_reads_is_told_apart(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "longwave-export.json").write_text('{"target": "gguf"}')
    with pytest.raises(ValueError, match="is an export for gguf, which longwave does not read"):
        longwave.load(folder)
    with pytest.raises(ValueError, match="factor must be a finite number, got '8'"):
        longwave.export(trained, tmp_path / "out", factor="8")


def test_an_untrained_clex_is_refused(llama, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = longwave.save(longwave.extend(llama, "clex", max_factor=4), tmp_path / "own", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has not been trained"):
        export(folder, tmp_path / "out")


def test_a_model_without_rotary_module_is_refused(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="no rotary module"):
        export(tmp_path / "gpt2", tmp_path / "out", method="yarn")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A real file system of so many bytes."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small(trained: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 65536) as small:
        with pytest.raises(ValueError, match="GB free, the export needs"):
            export(trained, small / "out")
        assert list(small.iterdir()) == []


def test_a_disk_that_fills_midway(trained: Path, tmp_path: Path) -> None:
    """Room for the weights, as the check sees it, but not for the tokenizer beside them."""
    (trained / "tokenizer.model").write_bytes(bytes(1 << 20))
    weights = (trained / "model" / "model.safetensors").stat().st_size
    with small_disk(tmp_path / "small", weights + (64 << 10)) as small:
        with pytest.raises(ValueError, match=r"the disk of .* is full: nothing was written"):
            export(trained, small / "out")
        assert list(small.iterdir()) == []


def test_targets_are_looked_up_by_name() -> None:
    assert choices("target") == tuple(EXPORTERS)
    with pytest.raises(ValueError, match=r"Did you mean 'hf'\?"):
        get_exporter("HF")


def choices(option: str) -> tuple[str, ...]:
    """What `longwave export` takes for an option."""
    annotation = inspect.signature(command).parameters[option].annotation
    return get_args(get_args(get_args(annotation)[0])[0])


def test_a_format_is_no_number_of_tokens(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for said, advice in (
        ("gguf", "Write --target gguf"),
        ("many", "--to must be a whole number of tokens, got 'many'"),
    ):
        assert main(["export", str(trained), "--to", said, "-o", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert advice in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_old_option_of_a_length(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "--length", "128", "-o", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["length"] == 128 and "--length is now --to" in said.err
    assert main(["export", str(trained), "--length", "128", "--to", "99", "-o", str(out)]) == 1
    assert "Give --to alone" in capsys.readouterr().err
    assert main(["export", "--help"]) == 0
    assert "--length" not in capsys.readouterr().out


def test_old_keywords_still_work(trained: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"now export\(target='hf'\)") as warned:
        done = longwave.export(trained, tmp_path / "a", to="hf", factor=2)
    assert done.target == "hf" and __file__ in [warning.filename for warning in warned]
    with pytest.warns(DeprecationWarning, match=r"export\(length=...\) is now export\(to=...\)"):
        assert longwave.export(trained, tmp_path / "b", length=128).snapshot.max_length == 128
    with (
        pytest.warns(DeprecationWarning, match="target"),
        pytest.raises(ValueError, match="to is the old name of target"),
    ):
        longwave.export(trained, tmp_path / "c", to="gguf", target="hf")
    with pytest.raises(ValueError, match=r"unknown setting 'targe'\. Did you mean 'target'"):
        longwave.export(trained, tmp_path / "c", targe="hf")


def test_what_one_target_cannot_express_another_can(tmp_path: Path, llama, tokenizer) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("gguf")
    LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "hidden_act": "relu"})).save_pretrained(tmp_path / "relu")
    tokenizer.save_pretrained(tmp_path / "relu")
    with pytest.raises(ValueError, match=r"has silu only, the model has relu\. Another target can: --target hf"):
        export(tmp_path / "relu", tmp_path / "out", target="gguf", method="yarn")
    assert not (tmp_path / "out").exists()
