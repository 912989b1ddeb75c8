"""Weights that are not what config.json says: each target has what transformers makes of them, or refuses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gguf import DEMO, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from longwave.exporters.exported import Exported
from longwave.exporters.gguf import llamacpp
from longwave.exporters.run import export
from longwave.files import read_json, write_json

Tensors = dict[str, Tensor]
NATIVE = [
    pytest.param("gguf", marks=pytest.mark.skipif(llamacpp.installed() is None, reason="needs longwave[llamacpp]")),
    pytest.param("ctranslate2", marks=pytest.mark.skipif(not find_spec("ctranslate2"), reason="needs ctranslate2")),
]
ENGINES = ["hf", *NATIVE]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A random Llama with weights so large that a wrong tensor changes every logit, and the tokenizer of the demo."""
    make_model("llama", head_dim=16).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def set_config(folder: Path, **fields: object) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **fields})


def edit(folder: Path, change: Callable[[Tensors], object]) -> Tensors:
    """Change the tensors of a folder with one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def shard(folder: Path) -> None:
    """Put every tensor into a file of its own."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"model-{index:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / weight_map[name], metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def verified(folder: Path, to: str, output: Path) -> Exported:
    """An export that its engine agrees with: `agreement.check` raises otherwise."""
    done = export(folder, output, target=to, method="yarn", factor=4, quantize={"gguf": "f32"}.get(to), verify=True)
    assert done.agreement is not None and done.agreement.equal == done.agreement.total
    return done


@pytest.mark.slow
@pytest.mark.parametrize("to", ENGINES)
def test_a_head_of_its_own_is_exported_though_the_config_ties_it(to: str, plain: Path, tmp_path: Path) -> None:
    set_config(plain, tie_word_embeddings=True)
    if to == "gguf":
        shard(plain)
    done = verified(plain, to, tmp_path / "out")
    assert [note for note in done.notes if "config.json ties lm_head.weight to the embedding" in note]


def test_vllm_reads_from_the_config_that_the_head_is_its_own(plain: Path, tmp_path: Path) -> None:
    """vLLM and SGLang do not load a head where the config ties it."""
    set_config(plain, tie_word_embeddings=True)
    folder = export(plain, tmp_path / "out", method="yarn").folder
    assert read_json(folder / "config.json")["tie_word_embeddings"] is False
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).lm_head.weight, load_head(plain))


def load_head(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")[HEAD]


@pytest.mark.parametrize("to", NATIVE)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_equal_to_the_embedding_is_as_good_as_tied(to: str, tied: bool, plain: Path, tmp_path: Path) -> None:
    set_config(plain, tie_word_embeddings=tied)
    edit(plain, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert verified(plain, to, tmp_path / "out").notes == []


@pytest.mark.parametrize("to", NATIVE)
def test_tied_weights_may_be_stored_as_the_head_alone(to: str, plain: Path, tmp_path: Path) -> None:
    set_config(plain, tie_word_embeddings=True)
    edit(plain, lambda tensors: tensors.pop(EMBEDDING))
    verified(plain, to, tmp_path / "out")


@pytest.mark.parametrize("to", ENGINES)
def test_an_untied_model_without_a_head_is_refused(to: str, plain: Path, tmp_path: Path) -> None:
    edit(plain, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ValueError, match=r"holds no weights for lm_head\.weight, which the model has"):
        export(plain, tmp_path / "out", target=to, method="yarn")


def add_value_head(tensors: Tensors) -> None:
    tensors["v_head.summary.weight"] = torch.ones(1, 64)
    tensors["v_head.summary.bias"] = torch.ones(1)


@pytest.mark.slow
@pytest.mark.parametrize("to", ENGINES)
def test_tensors_that_the_model_does_not_have_are_named(to: str, plain: Path, tmp_path: Path) -> None:
    edit(plain, add_value_head)
    [note] = verified(plain, to, tmp_path / "out").notes
    assert "hold 2 tensors that the model of config.json does not have (the first is v_head.summary.bias)" in note
    assert note.endswith("The export keeps them." if to == "hf" else "The export leaves them out.")
    if to == "hf":
        assert "v_head.summary.weight" in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("to", ENGINES)
def test_an_unknown_tensor_does_not_hide_what_is_missing(to: str, plain: Path, tmp_path: Path) -> None:
    tensors = edit(plain, lambda tensors: (add_value_head(tensors), tensors.pop("model.norm.weight")))
    with pytest.raises(ValueError, match=r"holds no weights for model\.norm\.weight, which the model has"):
        export(plain, tmp_path / "out", target=to, method="yarn")
    norm = {"model.norm.weight": torch.ones(3)}
    save_file(tensors | norm, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[3\], by config.json it is \[64\]"):
        export(plain, tmp_path / "out", target=to, method="yarn")


@pytest.mark.parametrize("to", NATIVE)
def test_layers_that_the_config_leaves_out_are_counted(to: str, plain: Path, tmp_path: Path) -> None:
    set_config(plain, num_hidden_layers=1)
    notes = verified(plain, to, tmp_path / "out").notes
    assert "hold 9 tensors" in notes[0] and "model.layers.1." in notes[0]
    assert "num_hidden_layers 1, and the weights hold 2 layers. The model runs the first 1" in notes[1]


@pytest.mark.parametrize("to", ENGINES)
def test_layers_that_the_weights_lack_are_counted(to: str, plain: Path, tmp_path: Path) -> None:
    set_config(plain, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"no weights for model\.layers\.2\.self_attn\.q_proj\.weight and 8 more"):
        export(plain, tmp_path / "out", target=to, method="yarn")


@pytest.mark.parametrize("to", NATIVE)
def test_a_file_of_the_model_without_its_head_has_other_names(to: str, plain: Path, tmp_path: Path) -> None:
    """transformers puts `model.` before the names of a base model, whose file has no head."""
    set_config(plain, tie_word_embeddings=True)
    tensors = load_file(plain / "model.safetensors")
    tensors.pop(HEAD)
    base = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(base, plain / "model.safetensors", metadata={"format": "pt"})
    assert verified(plain, to, tmp_path / "out").notes == []


@pytest.mark.parametrize("to", ENGINES)
def test_quantized_weights(to: str, plain: Path, tmp_path: Path) -> None:
    set_config(plain, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    name = "model.layers.0.self_attn.q_proj"
    edit(plain, lambda tensors: tensors.update({f"{name}.qweight": tensors.pop(f"{name}.weight").int()}))
    if to == "hf":
        [note] = export(plain, tmp_path / "out", target=to, method="yarn").notes
        assert "The weights are quantized (gptq)" in note
    else:
        with pytest.raises(ValueError, match=rf"quantized \(gptq\), and {to} export needs plain ones"):
            export(plain, tmp_path / "out", target=to, method="yarn")


@pytest.mark.parametrize("to", ENGINES)
def test_plain_weights_under_a_config_that_quantizes(to: str, plain: Path, tmp_path: Path) -> None:
    """What a merge of an adapter into a model in 4 bits leaves behind."""
    set_config(plain, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    if to == "ctranslate2":
        with pytest.raises(ValueError, match=r"asks for quantization \(bitsandbytes\).*Remove quantization_config"):
            export(plain, tmp_path / "out", target=to, method="yarn")
        return
    [note] = export(plain, tmp_path / "out", target=to, method="yarn").notes
    assert "config.json asks for quantization (bitsandbytes), and the weights are not quantized" in note
