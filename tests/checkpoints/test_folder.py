"""Kinds of folders, and what longwave says of those that it cannot load."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_save_and_load import legacy_folder
from transformers import LlamaForCausalLM
from transformers.utils import is_bitsandbytes_available
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

import longwave
from longwave.checkpoints.folder import Kind, kind_of
from longwave.checkpoints.load import extension_of
from longwave.checkpoints.rewriting import _blocks
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.cli.main import main
from longwave.exporters.opening import open_source


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    given = capsys.readouterr()
    assert given.out == "" and given.err.startswith("error: ") and given.err.count("\n") == 1, given.err
    return given.err


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_kinds(plain: Path, trained: Path, tmp_path: Path) -> None:
    assert kind_of(plain) is Kind.PLAIN and kind_of(trained) is Kind.LONGWAVE
    assert kind_of(legacy_folder(tmp_path / "official", "tanh_d64")) is Kind.OFFICIAL
    assert kind_of(longwave.export(trained, tmp_path / "export").folder) is Kind.EXPORT
    assert kind_of(write(tmp_path / "adapter", adapter_config__json={})) is Kind.ADAPTER
    assert kind_of(write(tmp_path / "gguf", model__gguf={})) is Kind.FOREIGN
    assert kind_of(write(tmp_path / "else", notes__txt={})) is Kind.UNKNOWN
    (trained / "longwave.json").unlink()
    assert kind_of(trained) is Kind.INCOMPLETE
    (plain / "model").mkdir()  # a plain model may have a folder of that name
    assert kind_of(plain) is Kind.PLAIN


ADAPTER = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
REFUSED = {
    "adapter": ({"adapter_config__json": ADAPTER}, "is a PEFT adapter of org/base, not a model. Merge it"),
    "nameless adapter": ({"adapter_config__json": {}}, "is a PEFT adapter, not a model."),
    "gguf": ({"model__gguf": {}}, "holds GGUF files, which longwave does not read"),
    "other engine": (
        {"longwave-export__json": {"target": "ctranslate2"}, "config__json": {"bos_token": "<s>"}},
        "is an export for ctranslate2, which longwave does not read",
    ),
    "unfinished": (
        {"training__json": {"status": "running"}},
        "holds no model: neither longwave.json nor config.json is there. Its training has not ended: "
        "run the same `longwave train` with --resume.",
    ),
    "a list": ({"config__json": [1]}, "config.json holds no JSON object, but a list. Restore the file."),
    "remote code": (
        {"config__json": {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}},
        "config.json asks for the class modeling_own.OwnForCausalLM, which is code of the checkpoint, and longwave "
        "does not run remote code.",
    ),
    "unknown type": ({"config__json": {"model_type": "own"}}, "config.json has model_type 'own', which transformers"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_loaded_is_one_line(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, message = REFUSED[how]
    folder = write(tmp_path / "model", **files)
    assert message in complaint(capsys, "generate", folder, "--prompt", "x")
    with pytest.raises(ValueError) as caught:
        longwave.load(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_code_of_a_checkpoint_is_not_run_nor_asked_for(plain: Path, tmp_path: Path) -> None:
    """The auto_map of a model that transformers has itself is left aside, as ever."""
    edit(plain / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    assert longwave.load(plain).config.model_type == "llama"
    edit(plain / "config.json", model_type="own", rope_parameters={"rope_type": "yarn", "factor": 2.0})
    (plain / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for read in (longwave.load, extension_of, lambda folder: open_source(folder, method="ntk")):
        with pytest.raises(ValueError, match="does not run remote code"):
            read(plain)
    assert not (tmp_path / "ran").exists()


QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_model_without_its_library(
    method: str,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    is_bitsandbytes_available.cache_clear()
    request.addfinalizer(is_bitsandbytes_available.cache_clear)  # transformers keeps the answer for later tests
    for name in ("optimum", "bitsandbytes", "gptqmodel"):
        monkeypatch.setitem(sys.modules, name, None)
    edit(plain / "config.json", quantization_config=QUANTIZED[method])
    said = complaint(capsys, "generate", plain, "--prompt", "x")
    assert (
        f"{plain}/config.json says that the weights are quantized ({method}), and a library for it is missing" in said
    )
    assert "pip install" in said and said.endswith("Install it, or load the model that was quantized.\n")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_tokenizer_file_is_named(
    name: str, plain: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (plain, trained):
        text = (folder / name).read_text().rstrip()
        (folder / name).write_text(text.removesuffix("}").rstrip() + ",\n}")  # a trailing comma
        message = f"{folder / name} is not valid JSON"
        assert message in complaint(capsys, "generate", folder, "--prompt", "x")
        method = ["--method", "ntk"] if folder == plain else []
        assert message in complaint(capsys, "export", folder, *method, "-o", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def without_tokenizer(folder: Path) -> Path:
    for path in folder.glob("token*"):
        path.unlink()
    return folder


def test_no_tokenizer(plain: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in map(without_tokenizer, (plain, trained)):
        assert f"{folder} holds no tokenizer. Copy" in complaint(capsys, "generate", folder, "--prompt", "x")


@pytest.mark.skipif(is_sentencepiece_available() and is_protobuf_available(), reason="the packages are there")
def test_a_sentencepiece_file_alone(plain: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_tokenizer(plain)
    shutil.copy(shared / "data" / "models" / "llama2_tokenizer" / "tokenizer.model", plain / "tokenizer.model")
    edit(plain / "config.json", model_type="llama")
    said = complaint(capsys, "generate", plain, "--prompt", "x")
    assert f"{plain}/tokenizer.model cannot be read without" in said and "tiktoken" not in said
    assert "Put the model's tokenizer.json beside it, or pip install " in said


def test_a_tokenizer_that_is_code(plain: Path) -> None:
    (plain / "tokenizer.json").unlink()
    write(plain, tokenizer_config__json={
        "tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"tokenizer_config\.json asks for the class OwnTokenizer, which is code"):
        load_tokenizer(plain)


def test_a_tokenizer_in_the_folder_of_the_model(trained: Path) -> None:
    expected = load_tokenizer(trained)("abc").input_ids
    for path in trained.glob("token*"):
        path.rename(trained / "model" / path.name)
    assert load_tokenizer(trained)("abc").input_ids == expected


def test_a_tokenizer_that_the_library_does_not_take(plain: Path) -> None:
    edit(plain / "tokenizer.json", model={"type": "Spiral"})
    with pytest.raises(ValueError, match=r"cannot load a tokenizer from .*plain") as caught:
        load_tokenizer(plain)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_line(llama: LlamaForCausalLM, plain: Path) -> None:
    weights = plain / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-64], whole[:5], b"", b"\xff" * 64):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load a model from .*plain") as caught:
            longwave.load(plain)
        assert "\n" not in str(caught.value)
    save_file({"lm_head.weight": torch.zeros(2)}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 21 weights"):
        longwave.load(plain)


@pytest.mark.parametrize("key", ["schedule", "method", "options"])
def test_a_setting_of_another_type_is_one_line(key: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(trained / "longwave.json", **{key: 3})
    assert f"longwave.json: {key} is 3, it must be" in complaint(capsys, "generate", trained, "--prompt", "x")


def test_tensors_of_another_precision_are_read(trained: Path) -> None:
    tensors = load_file(trained / "longwave.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, trained / "longwave.safetensors")
    assert longwave.extension(longwave.load(trained)).method == "clex"


def test_a_damaged_tokenizer_below_model_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [*trained.glob("tokenizer*")]:
        path.rename(trained / "model" / path.name)
    (trained / "model" / "tokenizer.json").write_text("{")
    assert "model/tokenizer.json is not valid JSON" in complaint(capsys, "generate", trained, "--prompt", "x")


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "qwen.tiktoken"])
def test_a_tokenizer_of_another_name_is_one(name: str, plain: Path) -> None:
    for path in plain.glob("tokenizer*"):
        path.unlink()
    (plain / name).write_bytes(b"no tokenizer")
    with pytest.raises(ValueError) as caught:
        load_tokenizer(plain)
    assert "holds no tokenizer" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_copied() -> None:
    source = tempfile.TemporaryFile()  # noqa: SIM115
    with source, pytest.raises(ValueError, match="ended too early"):
        list(_blocks(source, 8))
