"""GGUF files, read back by the `gguf` package and run by llama.cpp's own server."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import big
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import longwave
from longwave.exporters.base import EngineMissing
from longwave.exporters.gguf import GGUF, llamacpp
from longwave.exporters.gguf import engine as exporter
from longwave.exporters.gguf import tensors as gguf_tensors
from longwave.exporters.gguf.frequencies import geometric
from longwave.exporters.opening import open_source
from longwave.exporters.source import Source
from longwave.exporters.verify import expected
from longwave.extensions.handle import rotaries
from longwave.extensions.policy import frozen

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'longwave[gguf]'")
engine = pytest.mark.skipif(llamacpp.installed() is None, reason="needs llama.cpp: pip install 'longwave[llamacpp]'")

DEMO = Path(longwave.__file__).parent / "demo" / "model"
TOLERANCE = 1e-3  # of log-probabilities; granite is worst: 6e-4 in docs/exports.md, 9.4e-4 over ten seeds
FACTOR = 4.0
LONG = 150  # tokens of a prompt; L is 64
SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "initializer_range": 0.2, "sliding_window": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 16},
    "llama with biases": {"model_type": "llama", "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "llama, other head size": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "ministral": {"model_type": "ministral", "head_dim": 16, "sliding_window": 512},
    "exaone4": {"model_type": "exaone4", "head_dim": 16, "layer_types": ["full_attention"] * 2},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 16, "attention_bias": True},
    "helium": {"model_type": "helium", "head_dim": 16},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 16, "use_bias": True},
    "phi3": {"model_type": "phi3"},
    "phi3, part of the head": {"model_type": "phi3", "partial_rotary_factor": 0.5},
    "granite with biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    "granite": {
        "model_type": "granite", "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
}  # fmt: skip


def make_model(model_type: str, **fields: Any) -> PreTrainedModel:
    """A random model whose biases and norms are random, too."""
    config = AutoConfig.for_model(model_type, **(SIZES | fields))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    return model


def make_source(model: PreTrainedModel, folder: Path, method: str, tokenizer: Any = None) -> Source:
    """The model extended to `FACTOR` and opened as an export does; `clex` with a field far from its start."""
    longwave.extend(model, method, max_factor=FACTOR)
    if method == "clex":
        for parameter in rotaries(model)[0].trajectory.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(DEMO)
    return open_source(longwave.save(model, folder, tokenizer=tokenizer))


def export(source: Source, folder: Path, quantize: str = "f32", **changed: Any) -> Path:
    folder.mkdir()
    snapshot = replace(source.snapshot(FACTOR), **changed)
    GGUF().plan(source, snapshot, quantize).write(folder)
    return folder


def read(folder: Path) -> Any:
    (file,) = folder.glob("*.gguf")
    return gguf.GGUFReader(file)


def difference(model: PreTrainedModel, folder: Path, length: int = LONG) -> tuple[float, bool]:
    """Largest difference of a log-probability between llama.cpp and longwave, and whether all tokens are equal."""
    prompts = torch.randint(1, 500, (2, length), generator=torch.Generator().manual_seed(0))
    answers = GGUF().run(folder, prompts.tolist(), 8)
    worst, equal = 0.0, True
    with frozen(model, FACTOR), torch.no_grad():
        for prompt, answer in zip(prompts, answers, strict=True):
            row = torch.cat([prompt, torch.tensor(answer.tokens)])[None]
            ours = model(row[:, :-1], use_cache=False).logits[0, length - 1 :].log_softmax(-1)
            assert answer.log_probs is not None
            worst = max(worst, float((ours - torch.from_numpy(answer.log_probs)).abs().max()))
            equal &= ours.argmax(-1).tolist() == answer.tokens
    return worst, equal


@pytest.mark.slow
@engine
@pytest.mark.parametrize("method", ["clex", "yarn", "ntk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_says_what_longwave_says(family: str, method: str, tmp_path: Path) -> None:
    model = make_model(**FAMILIES[family])
    source = make_source(model, tmp_path / "model", method)
    worst, equal = difference(model, export(source, tmp_path / "out"))
    assert equal and worst < TOLERANCE, worst


@engine
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "granite"])
def test_without_the_factors_it_says_something_else(family: str, tmp_path: Path) -> None:
    model = make_model(**FAMILIES[family])
    source = make_source(model, tmp_path / "model", "clex")
    ones = torch.ones_like(source.snapshot(FACTOR).factors)
    worst, _ = difference(model, export(source, tmp_path / "out", factors=ones))
    assert worst > 20 * TOLERANCE, worst


@pytest.mark.slow
@engine
def test_a_geometric_series_needs_no_factors(tmp_path: Path) -> None:
    for method in ("ntk", "linear"):
        torch.manual_seed(0)
        model = make_model("qwen3", head_dim=16)
        source = make_source(model, tmp_path / method, method)
        folder = export(source, tmp_path / f"{method}-out")
        assert not [tensor.name for tensor in read(folder).tensors if "rope" in tensor.name]
        worst, equal = difference(model, folder)
        assert equal and worst < TOLERANCE, (method, worst)
        plain = export(source, tmp_path / f"{method}-plain", inv_freq=source.snapshot(1.0).inv_freq)
        worst, _ = difference(model, plain)  # the same file at other frequencies
        assert worst > 20 * TOLERANCE, (method, worst)


def test_geometric_tells_ntk_from_yarn() -> None:
    for method, series in {"none": True, "ntk": True, "linear": True, "yarn": False}.items():
        model = make_model("llama")
        longwave.extend(model, method, max_factor=FACTOR)
        found = geometric(longwave.snapshot(model, FACTOR))
        assert (found is not None) == series, method
        if found is not None:
            powers = found.base ** (torch.arange(0, 16, 2).double() / 16)
            torch.testing.assert_close(1 / (found.linear * powers), longwave.snapshot(model, FACTOR).inv_freq)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_file_holds_the_snapshot(family: str, tmp_path: Path) -> None:
    source = make_source(make_model(**FAMILIES[family]), tmp_path / "model", "clex")
    reader = read(export(source, tmp_path / "out"))
    snapshot = source.snapshot(FACTOR)
    factors = [tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    assert len(factors) == {"llama": 1, "phi3": 2}[family]
    for found in factors:
        assert found.dtype == np.float32 and np.array_equal(found, snapshot.factors.numpy())
    assert reader.fields[f"{family}.context_length"].contents() == 256
    scaling = reader.fields[f"{family}.rope.scaling.attn_factor"].contents()
    assert scaling == pytest.approx(snapshot.attention_scaling) and scaling > 1  # the constant of log-n


@pytest.mark.parametrize("quantize", GGUF.quantizations)
def test_quantizations(quantize: str, tmp_path: Path) -> None:
    model = make_model("llama", intermediate_size=120)  # no whole number of blocks
    source = make_source(model, tmp_path / "model", "ntk")
    folder = export(source, tmp_path / "out", quantize)
    assert [path.name for path in folder.iterdir()] == [f"model-{quantize.upper()}.gguf"]
    tensors = {tensor.name: tensor for tensor in read(folder).tensors}
    step = {"f32": 0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 1 / 127, "q5_1": 0.1, "q5_0": 0.1, "q4_1": 0.2, "q4_0": 0.2}
    for name, origin in {"token_embd": "model.embed_tokens", "blk.1.ffn_down": "model.layers.1.mlp.down_proj"}.items():
        weight = model.get_parameter(f"{origin}.weight").detach().numpy()
        stored = tensors[f"{name}.weight"]
        found = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(weight.shape)
        assert np.abs(found - weight).max() <= step[quantize] * np.abs(weight).max()
    narrow = tensors["blk.1.ffn_down.weight"].tensor_type.name
    assert narrow == (quantize.upper() if quantize in ("f32", "f16", "bf16") else "F16")
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    weights = sum(tensor.n_bytes for tensor in tensors.values() if not tensor.name.startswith("rope_f"))
    size = {kind: GGUF().plan(source, source.snapshot(FACTOR), kind).size for kind in (quantize, None, "f16")}
    assert size[quantize] == weights
    assert size[None] == size["f16"]


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    """A real file system that holds the metadata, and some of the weights."""
    source = make_source(make_model("llama"), tmp_path / "model", "clex")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(OSError) as caught:
            GGUF().plan(source, source.snapshot(FACTOR), "f32").write(small)
        assert caught.value.errno == errno.ENOSPC
        assert GGUF().plan(source, source.snapshot(FACTOR), "f32").size > 256 * 1024
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1.5 GB of weights: 0.45 GB at the peak, nearly all of it torch and transformers themselves."""
    size = big.write_big_model(tmp_path / "big")
    assert size > 1.5e9
    asked = f"export {tmp_path}/big --method yarn --target gguf --quantize q8_0 -o {tmp_path}/out"
    assert big.peak_of(*asked.split()) < 500e6
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.stat().st_size > size / 2


@engine
def test_q8_0_in_the_engine(tmp_path: Path) -> None:
    model = make_model("llama", head_dim=16)
    source = make_source(model, tmp_path / "model", "clex")
    worst, _ = difference(model, export(source, tmp_path / "out", "q8_0"))
    assert TOLERANCE < worst < 1.0, worst


def test_shards_and_types_of_the_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """One file or many give the same tensors; bfloat16 survives."""
    model = make_model("llama", vocab_size=256, head_dim=16).to(torch.bfloat16)
    for name, size in {"one": "1GB", "many": "40KB"}.items():
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        tokenizer.save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    found = []
    for name in ("one", "many"):
        source = open_source(tmp_path / name, method="yarn", factor=FACTOR)
        reader = read(export(source, tmp_path / f"{name}-out", "bf16"))
        found.append({tensor.name: tensor.data.tobytes() for tensor in reader.tensors})
    assert found[0] == found[1]
    embedding = model.get_input_embeddings().weight.view(torch.uint16).numpy().tobytes()
    assert found[0]["token_embd.weight"] == embedding


@pytest.mark.parametrize("quantize", ["f16", "q8_0"])
def test_the_size_of_a_block_changes_nothing(quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(make_model("llama", head_dim=32), tmp_path / "model", "clex")
    whole = next(export(source, tmp_path / "whole", quantize).iterdir()).read_bytes()
    monkeypatch.setattr(gguf_tensors, "BLOCK", 5000)  # q has 8192 numbers, a head of it 2048
    assert next(export(source, tmp_path / "parts", quantize).iterdir()).read_bytes() == whole


@engine
def test_a_small_vocabulary_is_shown_whole(tmp_path: Path) -> None:
    model = make_model("llama", head_dim=16)
    [answer] = GGUF().run(export(make_source(model, tmp_path / "model", "clex"), tmp_path / "out"), [[5, 6, 7]], 8)
    assert answer.log_probs is not None
    np.testing.assert_allclose(np.exp(answer.log_probs).sum(-1), 1, atol=1e-4)


@engine
def test_of_a_large_vocabulary_the_most_likely_tokens_are_shown(tmp_path: Path) -> None:
    size = exporter.SHOWN + 8
    model = make_model("llama", head_dim=16, vocab_size=size)
    source = make_source(model, tmp_path / "model", "clex")
    prompt = torch.randint(1, size, (LONG,), generator=torch.Generator().manual_seed(0)).tolist()
    ones = torch.ones_like(source.snapshot(FACTOR).factors)
    worst = []
    for folder in (export(source, tmp_path / "out"), export(source, tmp_path / "ones", factors=ones)):
        [answer] = GGUF().run(folder, [prompt], 8)
        assert answer.log_probs is not None and answer.log_probs.shape == (8, size)
        shown = ~np.isnan(answer.log_probs)
        assert (shown.sum(-1) == exporter.TOP).all()
        assert np.nanargmax(answer.log_probs, -1).tolist() == answer.tokens
        ours = expected(model, FACTOR, prompt, answer)
        worst.append(float(np.abs(ours - answer.log_probs)[shown].max()))
    assert worst[0] < TOLERANCE and worst[1] > 20 * TOLERANCE, worst


TEXTS = (
    "The quick brown fox.", " two  spaces   three", "12345 and 7", "x = [1, 2]\n\n\tif x:\n        pass\n",
    "naïve café — 数字 ½ 😀",
    "don't WE'LL I've", "a\r\nb", "\n", " ",
)  # fmt: skip


def train(pre_tokenizer: Any, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens that learned from this file."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text("utf-8"), *TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


def split(pattern: str) -> Any:
    from tokenizers import Regex

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(steps)


def spec_of(name: str) -> str:
    """The regular expression that Llama 3 and Qwen 2 have in tokenizer.json."""
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}[name]
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )


@engine
@pytest.mark.parametrize(
    "name",
    [
        "gpt-2", "smollm", "llama-bpe", "qwen2", "demo", "llama",
        pytest.param("the real gpt-2", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_same_text_has_the_same_tokens(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name == "llama":
        folder = request.getfixturevalue("shared") / "data" / "models" / "stories260K" / "hf"
        tokenizer = AutoTokenizer.from_pretrained(folder)
    elif name == "demo":
        tokenizer = AutoTokenizer.from_pretrained(DEMO)
    elif name == "the real gpt-2":
        tokenizer = GPT2Tokenizer.from_pretrained(request.getfixturevalue("shared") / "data/models/gpt2_tokenizer")
    elif name == "gpt-2":
        tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    elif name == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer = train(pre_tokenizers.Sequence(steps))
    else:
        tokenizer = train(split(spec_of(name)), ignore_merges=name == "llama-bpe")
    model = make_model("llama", vocab_size=max(512, len(tokenizer)))
    source = make_source(model, tmp_path / "model", "ntk", tokenizer)
    folder = export(source, tmp_path / "out")
    expected = {"demo": "smollm", "llama": "default", "the real gpt-2": "gpt-2"}.get(name, name)
    assert read(folder).fields["tokenizer.ggml.pre"].contents() == expected
    with llamacpp.served(next(folder.iterdir()), 64) as address:
        for text in TEXTS:
            found = llamacpp.ask(address, "/tokenize", content=text, add_special=True)["tokens"]
            assert found == tokenizer(text)["input_ids"], text


@engine
def test_a_damaged_file_ends_the_engine_alone(tmp_path: Path) -> None:
    source = make_source(make_model("llama"), tmp_path / "model", "ntk")
    folder = export(source, tmp_path / "out")
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"llama\.cpp does not load .*model-F32\.gguf"), llamacpp.served(file, 64):
        pass


@engine
def test_a_server_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    source = make_source(make_model("llama"), tmp_path / "model", "ntk")
    with llamacpp.served(next(export(source, tmp_path / "out").iterdir()), 64) as address:
        with pytest.raises(ValueError, match=r"llama\.cpp refuses /completion"):
            llamacpp.ask(address, "/completion", prompt=[1] * 400, n_predict=1)  # more than the context holds
        assert llamacpp.ask(address, "/completion", prompt=[1, 2], n_predict=1)["tokens_evaluated"] == 2
    with pytest.raises(ValueError, match="does not answer"):
        llamacpp.ask(address, "/completion", prompt=[1])


def refusal(source: Source) -> str:
    with pytest.raises(ValueError) as caught:
        GGUF().plan(source, source.snapshot(FACTOR))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "method", "message"),
    [
        ({"model_type": "qwen3", "head_dim": 16}, "yarn", "reads no frequency factors for qwen3"),
        ({"model_type": "gemma", "head_dim": 16}, "yarn", "reads no frequency factors for gemma"),
        ({"model_type": "mixtral"}, "yarn", "does not know mixtral, only llama, mistral, qwen2, "),
        ({"model_type": "mistral", "sliding_window": 100}, "yarn", "the last 100 tokens only"),
        ({"model_type": "exaone4", "head_dim": 16, "sliding_window": 512}, "yarn", "without a sliding window only"),
        ({"model_type": "qwen3", "head_dim": 16, "attention_bias": True}, "ntk", "has no attention biases"),
        ({"model_type": "llama", "head_dim": 16, "hidden_act": "relu"}, "yarn", "has silu only"),
        ({"model_type": "phi3", "hidden_size": 64, "head_dim": 32}, "yarn", "hidden_size = heads x head_dim"),
    ],
)
def test_what_cannot_be_expressed_is_refused(fields: dict[str, Any], method: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(make_source(make_model(**fields), tmp_path / "model", method))


def test_tokenizers_that_cannot_be_expressed_are_refused(tmp_path: Path) -> None:
    steps = [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    odd = train(pre_tokenizers.Sequence(steps))
    source = make_source(make_model("llama"), tmp_path / "odd", "ntk", odd)
    assert "splits text (Punctuation, ByteLevel) in none of the ways" in refusal(source)
    source = make_source(make_model("llama", vocab_size=300), tmp_path / "small", "ntk")
    assert "has token 511, the model only 300 rows" in refusal(source)
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0)], unk_id=0)))
    source = make_source(make_model("llama"), tmp_path / "uni", "ntk", unigram)
    assert "is Unigram; GGUF export knows BPE only" in refusal(source)


def test_what_is_wrong_with_the_weights_is_named(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = 1e5
    source = make_source(model, tmp_path / "large", "ntk")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight reaches 100000, beyond float16"):
        export(source, tmp_path / "out", "f16")
    settings = tmp_path / "large" / "model" / "config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(ValueError, match=r"holds no weights for model\.layers\.0\.self_attn\.q_proj\.bias"):
        open_source(tmp_path / "large")
    settings.write_text(json.dumps(config | {"vocab_size": 600}))
    with pytest.raises(ValueError, match=r"has shape \[512, 64\], by config.json it is \[600, 64\]"):
        open_source(tmp_path / "large")
    with pytest.raises(ValueError, match="no quantization 'q2_k'"):
        GGUF().plan(source, source.snapshot(FACTOR), "q2_k")


def test_heads_that_are_rotated_in_part_are_named(tmp_path: Path) -> None:
    half = make_source(make_model("phi3", partial_rotary_factor=0.5), tmp_path / "half", "clex")
    whole = make_source(make_model("phi3"), tmp_path / "whole", "clex")
    notes = [GGUF().plan(source, source.snapshot(FACTOR)).notes for source in (half, whole)]
    assert [sum("rotates a part of each head" in note for note in found) for found in notes] == [1, 0]
    assert GGUF().plan(half, half.snapshot(FACTOR, log_n=False)).notes == notes[1]


def test_missing_packages_say_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(make_model("llama"), tmp_path / "model", "ntk")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'longwave[gguf]'" in refusal(source)
    monkeypatch.setattr(llamacpp, "PACKAGE", "no-such-package")
    with pytest.raises(EngineMissing, match=r"longwave\[llamacpp\]"):
        GGUF().engine()
