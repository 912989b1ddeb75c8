"""The Hugging Face export: what transformers makes of it, in a process that knows no longwave."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import big
import pytest
import torch
from families import FACTOR, examine_exports
from safetensors import safe_open
from tiny import model_types
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.checkpoints.rewriting import copy_weights
from longwave.exporters import EXPORTERS
from longwave.exporters.opening import open_source
from longwave.exporters.run import export
from longwave.extensions.policy import frozen
from longwave.files import read_json, sha256, write_json
from longwave.methods import METHODS

# Half-split, interleaved and partial layouts, one rope for each layer type, experts, latent attention, scaled ropes.
FAMILIES = (
    "llama", "mixtral", "qwen3", "gemma3_text", "phi3", "gpt_neox", "cohere", "glm4", "deepseek_v3", "gpt_oss",
)  # fmt: skip
NEEDS_CTRANSLATE2 = pytest.mark.skipif(find_spec("ctranslate2") is None, reason="needs ctranslate2")
FLOOR = 105  # of all types, see docs/exporting.md


@pytest.mark.slow
def test_transformers_alone_gives_the_same_logits_bit_for_bit(tmp_path: Path) -> None:
    found = examine_exports(FAMILIES, tmp_path)
    assert [export for export in found if export.difference != 0 or not export.greedy] == []
    assert [export for export in found if not (export.control or 0) > 1e-5] == []
    assert [export.model_type for export in found if not export.log_n] == []


@pytest.mark.slow
def test_every_type_is_exported_exactly_or_refused(tmp_path: Path) -> None:
    found = [export for export in examine_exports(model_types(), tmp_path) if export.difference is not None]
    assert [export for export in found if export.difference != 0 or not (export.control or 0) > 1e-6] == []
    assert len(found) >= FLOOR


@pytest.mark.parametrize("method", METHODS)
def test_the_config_holds_the_frequencies_of_every_method(
    method: str, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    options = {"long_factor": [1 + index / 2 for index in range(8)]} if method == "longrope" else {}
    longwave.extend(llama, method, max_factor=FACTOR, **options)
    for parameter in longwave.rotaries(llama)[0].trajectory.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    own = longwave.save(llama, tmp_path / "own", tokenizer=tokenizer)
    done = export(own, tmp_path / "hf", factor=3)
    vanilla = AutoModelForCausalLM.from_pretrained(done.folder)
    expected = longwave.snapshot(llama, 3)
    assert torch.equal(done.snapshot.factors, expected.factors)
    assert torch.equal(vanilla.model.rotary_emb.inv_freq, longwave.rotaries(llama)[0].frequencies.solve(3))
    torch.testing.assert_close(vanilla.model.rotary_emb.inv_freq.double(), expected.inv_freq, rtol=2e-7, atol=0)
    ids = torch.arange(150)[None] % 200
    again = longwave.load(done.folder)
    assert torch.equal(
        longwave.rotaries(again)[0].frequencies.solve(3), longwave.rotaries(llama)[0].frequencies.solve(3)
    )
    with frozen(llama, 3), torch.no_grad():
        assert torch.equal(llama(ids).logits, vanilla(ids).logits)
        assert torch.equal(again(ids).logits, vanilla(ids).logits)


def test_frozen_is_undone(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=True)
    longwave.set_policy(llama, "grow")
    ids = torch.arange(100)[None]
    with torch.no_grad():
        before = llama(ids).logits
        with frozen(llama, 4):
            assert not torch.equal(llama(ids).logits, before)
        assert torch.equal(llama(ids).logits, before)
    assert longwave.extension(llama).dial.now.grows


def test_weights_are_copied_as_they_are(trained: Path, tmp_path: Path) -> None:
    """bfloat16 stays bfloat16, shards stay shards."""
    model = longwave.load(trained).to(torch.bfloat16)
    sharded = longwave.save(model, tmp_path / "sharded")
    with_shards = sharded / "model"
    with longwave.suspended(model):
        model.save_pretrained(with_shards, max_shard_size="100KB")
    (with_shards / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((trained / name).read_bytes())
    done = export(sharded, tmp_path / "hf")
    shards = sorted(path.name for path in with_shards.glob("*.safetensors"))
    assert len(shards) > 2
    for name in (*shards, "model.safetensors.index.json"):
        assert (
            sha256(done.folder / name) == sha256(with_shards / name)
            if "index" not in name
            else read_json(done.folder / name) == read_json(with_shards / name)
        )
    assert AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto").dtype == torch.bfloat16


def test_a_plain_model_and_a_method(plain: Path, tmp_path: Path) -> None:
    done = export(plain, tmp_path / "hf", method="yarn", to=150)
    config = read_json(done.folder / "config.json")
    assert done.snapshot.factor == 150 / 64 and config["max_position_embeddings"] == 150
    assert config["rope_parameters"]["attention_factor"] == done.snapshot.attention_scaling
    assert read_json(done.folder / "tokenizer_config.json")["model_max_length"] == 150


def test_log_n_is_a_constant_or_left_out(trained: Path, tmp_path: Path) -> None:
    import math

    constant = export(trained, tmp_path / "a", factor=4).snapshot.attention_scaling
    assert constant == pytest.approx(math.sqrt(math.log(256) / math.log(64)))
    assert export(trained, tmp_path / "b", factor=4, log_n="drop").snapshot.attention_scaling == 1.0


def test_tensors_that_are_not_the_models_are_left_out(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    copy_weights(plain, tmp_path / "out", ("q_proj.weight",))
    with (
        safe_open(plain / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "out/model.safetensors", "pt") as after,
    ):
        kept = [name for name in before.keys() if not name.endswith("q_proj.weight")]  # noqa: SIM118
        assert sorted(after.keys()) == sorted(kept) and len(kept) < len(list(before.keys()))
        assert all(torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in kept)


def test_code_that_stays_behind_is_named(plain: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        write_json(plain / name, {**read_json(plain / name), "auto_map": {"AutoTokenizer": ["code.Own", None]}})
    done = export(plain, tmp_path / "out", method="yarn")
    assert done.notes == [
        "config.json and tokenizer_config.json named Python code (auto_map). The export leaves that code out."
    ]
    assert not [
        name for name in ("config.json", "tokenizer_config.json") if "auto_map" in read_json(done.folder / name)
    ]


@pytest.mark.slow
def test_verification_sees_a_wrong_export(trained: Path, tmp_path: Path) -> None:
    from longwave.exporters.verify import passages, verify

    done = export(trained, tmp_path / "right", factor=4, verify=True)
    assert done.agreement is not None
    assert (done.agreement.equal, done.agreement.max_difference) == (done.agreement.total, 0.0)
    assert max(done.agreement.prompt_tokens) > 64
    source = open_source(trained)
    wrong = export(trained, tmp_path / "wrong", factor=2).folder
    model = longwave.load(trained).eval()
    against = verify(EXPORTERS["hf"], wrong, model, 4.0, passages(source.tokenizer, 256, 32))
    assert against.max_difference is not None and against.max_difference > 1e-4


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1.5 GB of weights: 0.42 GB at the peak, nearly all of it torch and transformers themselves."""
    size = big.write_big_model(tmp_path / "big")
    assert size > 1.5e9
    peak = big.peak_of("export", str(tmp_path / "big"), "--method", "yarn", "-o", str(tmp_path / "out"))
    assert peak < 500e6
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) > size


@pytest.mark.parametrize("to", ["hf", pytest.param("ctranslate2", marks=NEEDS_CTRANSLATE2)])
def test_the_tokenizer_goes_along_with_all_its_files(
    to: str, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    templates = {"default": "{{ messages[0]['content'] }}", "tool_use": "[TOOL]{{ messages[0]['content'] }}"}
    own = copy.deepcopy(tokenizer)
    own.chat_template = templates
    llama.save_pretrained(tmp_path / "plain")
    own.save_pretrained(tmp_path / "plain")
    for name in ("tokenizer.model.v3", "emoji.json", "video_preprocessor_config.json"):
        (tmp_path / "plain" / name).write_text("{}")
    done = export(tmp_path / "plain", tmp_path / "out", target=to, method="yarn")
    assert PreTrainedTokenizerFast.from_pretrained(done.folder).chat_template == templates
    told = done.to_json()["files"]
    assert told["additional_chat_templates/tool_use.jinja"] == len(templates["tool_use"])
    assert told.keys() >= {"chat_template.jinja", "tokenizer.model.v3", "emoji.json", "video_preprocessor_config.json"}
