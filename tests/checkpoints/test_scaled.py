"""Checkpoints whose config has RoPE scaling: what transformers computes, from the rope before the scaling."""

from __future__ import annotations

import json
import logging as log
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

import longwave
from longwave.checkpoints.load import extension_of
from longwave.checkpoints.scaled import RAMP, RTOL, follow_config
from longwave.evaluation.subjects import under
from longwave.exporters.opening import open_source
from longwave.exporters.run import export
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import max_length_of, reach_of
from longwave.schedule import Static

L = 64
BASE = 1e4
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L},
    "yarn with all its keys": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L, "beta_fast": 16.0,
        "beta_slow": 0.5, "truncate": False, "attention_factor": 0.9,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": L, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "linear": {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": L},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": L},
}  # fmt: skip
METHODS = {"dynamic": "ntk", "yarn with all its keys": "yarn"}
FAMILIES = [
    (family, scaling)
    for family in ("llama", "qwen2", "phi3", "gpt_neox")
    for scaling in (["longrope"] if family == "phi3" else SCALINGS)
    if not (family == "gpt_neox" and scaling == "dynamic")  # transformers cannot: its config has no head_dim
]


def scaled(family: str, scaling: dict[str, Any], **changes: Any) -> PreTrainedModel:
    config = tiny_config(family)
    own = dict(config.rope_parameters)
    config.max_position_embeddings = 4 * L
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(heads * own.get("partial_rotary_factor", 1.0)) // 2
    parameters = own | {"rope_theta": BASE} | scaling
    kind = scaling["rope_type"]
    if kind == "longrope" and "long_factor" not in scaling:
        short = torch.linspace(1, 1.3, pairs).tolist()
        parameters |= {"short_factor": short, "long_factor": torch.linspace(1, 5, pairs).tolist()}
    if kind == "longrope" and hasattr(config, "original_max_position_embeddings"):  # phi3
        config.original_max_position_embeddings = parameters["original_max_position_embeddings"]
    values = config.to_dict() | {"rope_parameters": parameters} | changes
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(type(config)(**values)).eval()


def logits(model: PreTrainedModel, length: int = 4 * L) -> Tensor:
    ids = torch.arange(2 * length).reshape(2, length) * 7 % 120 + 3
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def rotary_state(model: PreTrainedModel) -> dict[str, Any]:
    modules = [module for module in model.modules() if "inv_freq" in dict(module.named_buffers(recurse=False))]
    (module,) = [module for module in modules if hasattr(module, "attention_scaling")]
    return {name: buffer.clone() for name, buffer in module.named_buffers()} | {
        "type": module.rope_type, "scaling": module.attention_scaling, "class": type(module), "id": id(module),
    }  # fmt: skip


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name] for name, value in a.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), FAMILIES)
def test_computes_what_transformers_computes(family: str, name: str, tmp_path: Path) -> None:
    scaled(family, SCALINGS[name]).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = longwave.load(tmp_path)
    (rotary,) = longwave.rotaries(ours)
    assert rotary.trajectory.name == METHODS.get(name, name)
    # without a length of its own, a dynamic config means what the model was trained at
    unit = 4 * L if name == "dynamic" else L
    assert (rotary.trajectory.rope.original_length, rotary.max_length) == (unit, 4 * unit)
    for length in (L // 2, L, L + 1, 4 * L, *([2 * unit] if name == "dynamic" else [])):
        expected = logits(theirs, length)
        assert (logits(ours, length) - expected).abs().max() < 1e-5
    with under(ours, "none", [length]):  # which is no coincidence
        assert (logits(ours, length) - expected).abs().max() > 1e-3
    assert extension_of(tmp_path) == (rotary.trajectory.name, 4.0)


@pytest.mark.parametrize(("family", "name"), FAMILIES)
def test_starts_from_the_rope_before_the_scaling_and_restores_what_was_loaded(family: str, name: str) -> None:
    model = scaled(family, SCALINGS[name])
    plain, before, loaded = scaled(family, {"rope_type": "default"}), rotary_state(model), logits(model, L)
    assert follow_config(model) is model
    (rotary,) = longwave.rotaries(model)
    if name == "longrope":  # its own are the short factors
        assert torch.equal(rotary.base.inv_freq, rotary.base.original_inv_freq)
    else:
        longwave.set_policy(model, "fixed", 1.0)
        assert torch.equal(logits(model), logits(plain))
        with under(model, "none", [4 * L]):
            assert torch.equal(logits(model), logits(plain))
        with under(model, "ntk", [4 * L]), longwave.extended(plain, "ntk", max_factor=4.0, original_length=L):
            if name != "dynamic":
                assert torch.equal(logits(model), logits(plain))
    assert len(longwave.rotaries(model)) == 1  # `under` has put it back
    longwave.restore(model)
    assert same(rotary_state(model), before)
    assert torch.equal(logits(model, L), loaded)


@pytest.mark.parametrize("name", SCALINGS)
def test_save_and_load_do_not_stack_the_scaling(name: str, tmp_path: Path) -> None:
    model = follow_config(scaled("llama", SCALINGS[name]))
    expected = logits(model)
    folder = longwave.save(model, tmp_path / "ours")
    again = longwave.load(folder)
    assert torch.equal(logits(model), expected) and torch.equal(logits(again), expected)
    assert repr(longwave.rotaries(again)) == repr(longwave.rotaries(model))
    with under(again, "none", [4 * L]), under(model, "none", [4 * L]):
        assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(longwave.restore(again)), logits(longwave.restore(model)))


def test_a_folder_of_before_takes_the_scaled_rope_as_the_models_own(tmp_path: Path) -> None:
    """Format 2 without the key `unscaled`."""
    model = longwave.extend(scaled("llama", SCALINGS["yarn"]), "ntk", max_factor=2)
    folder = longwave.save(model, tmp_path / "ours")
    found = json.loads((folder / "longwave.json").read_text())
    assert found.pop("unscaled") is False
    (folder / "longwave.json").write_text(json.dumps(found))
    assert torch.equal(logits(longwave.load(folder)), logits(model))


def test_a_saved_folder_whose_config_lost_its_scaling(tmp_path: Path) -> None:
    folder = longwave.save(follow_config(scaled("llama", SCALINGS["yarn"])), tmp_path / "ours")
    config = json.loads((folder / "model" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": BASE}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model/config\.json lacks the RoPE scaling that longwave\.json speaks of"):
        longwave.load(folder)


def test_plain_on_demand(tmp_path: Path) -> None:
    model = scaled("llama", SCALINGS["yarn"])
    model.save_pretrained(tmp_path)
    loaded = longwave.load(tmp_path, scaling="plain")
    assert find_extension(loaded) is None and torch.equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match=r"unknown scaling 'none'. Available: trajectory, plain"):
        longwave.load(tmp_path, scaling="none")


UNKNOWN: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "mscale_all_dim": SCALINGS["yarn"] | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "linear, its length before or after": {"rope_type": "linear", "factor": 4.0},
    "an unknown key": SCALINGS["llama3"] | {"beta": 2.0},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    "factor 1": SCALINGS["yarn"] | {"factor": 1.0, "original_max_position_embeddings": 4 * L},
    "betas that no ramp has": SCALINGS["yarn"] | {"beta_fast": 1.0, "beta_slow": 32.0},
    "an export without its record": {
        "rope_type": "longrope", "factor": 1.0, "original_max_position_embeddings": 4 * L,
        "short_factor": [2.0] * 8, "long_factor": [2.0] * 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_method_expresses_stays_plain(name: str, tmp_path: Path) -> None:
    model = scaled("llama", UNKNOWN[name])
    before = rotary_state(model)
    assert find_extension(follow_config(model)) is None
    assert same(rotary_state(model), before)
    model.save_pretrained(tmp_path)
    assert extension_of(tmp_path) is None


def test_frequencies_that_the_config_does_not_describe_stay_plain() -> None:
    for change in ("inv_freq", "attention_scaling"):
        model = scaled("llama", SCALINGS["yarn"])
        setattr(model.model.rotary_emb, change, getattr(model.model.rotary_emb, change) * 1.00001)
        before = rotary_state(model)
        assert find_extension(follow_config(model)) is None
        assert same(rotary_state(model), before)


def test_a_scaling_for_each_layer_type_stays_plain() -> None:
    config = tiny_config("gemma3_text")
    config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    model = AutoModelForCausalLM.from_config(config)
    assert model.model.rotary_emb.rope_type["full_attention"] == "linear"
    assert find_extension(follow_config(model)) is None


def test_a_config_reaches_as_far_as_it_says() -> None:
    """Llama 3.1: factor 8, but 16 times its original length."""
    model = follow_config(scaled("llama", SCALINGS["llama3"] | {"factor": 2.0}))
    (rotary,) = longwave.rotaries(model)
    assert (rotary.factor_for(4 * L), rotary.max_length, rotary.schedule.spec) == (2.0, 4 * L, "static=2")


PAST = [(family, name) for family, name in FAMILIES if family in ("llama", "phi3")]


@pytest.mark.parametrize(("family", "name"), PAST)
def test_no_length_that_runs_in_transformers_is_refused(family: str, name: str) -> None:
    model, theirs = follow_config(scaled(family, SCALINGS[name])), scaled(family, SCALINGS[name])
    reach = longwave.rotaries(model)[0].max_length
    assert (max_length_of(model), reach_of(model)) == (None, reach)
    if name != "dynamic":  # whose t stays at the factor here
        assert (logits(model, reach + 9) - logits(theirs, reach + 9)).abs().max() < 1e-5
    prompt = torch.arange(reach)[None] * 7 % 120 + 3
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt, **settings)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **settings))


@pytest.mark.parametrize("name", SCALINGS)
def test_extend_puts_another_method_on_what_was_loaded(name: str) -> None:
    model, plain = follow_config(scaled("llama", SCALINGS[name])), scaled("llama", SCALINGS[name])
    loaded = rotary_state(restored := scaled("llama", SCALINGS[name]))
    expected, (before,) = logits(model), longwave.rotaries(model)
    with pytest.raises(ValueError, match="yarn has no option 'slope'"):
        longwave.extend(model, "yarn", max_factor=2, slope=1.0)
    assert longwave.rotaries(model) == [before] and torch.equal(logits(model), expected)
    with longwave.extended(model, "ntk", max_factor=4), longwave.extended(plain, "ntk", max_factor=4):
        assert torch.equal(logits(model), logits(plain))
    assert longwave.rotaries(model) == [before] and torch.equal(logits(model), expected)
    assert model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=2).shape[1] == 6  # its hooks are there
    longwave.extend(model, "ntk", max_factor=4)
    with longwave.extended(plain, "ntk", max_factor=4):
        assert torch.equal(logits(model), logits(plain))
    with pytest.raises(ValueError, match="already extended"):
        longwave.extend(model, "ntk", max_factor=4)
    longwave.restore(model)
    assert torch.equal(logits(model, L), logits(restored, L))
    assert same({**rotary_state(model), "id": 0}, {**loaded, "id": 0})


@pytest.mark.parametrize("name", SCALINGS)
def test_save_pretrained_writes_what_was_loaded(name: str, tmp_path: Path) -> None:
    scaled("llama", SCALINGS[name]).save_pretrained(tmp_path / "theirs")
    model = longwave.load(tmp_path / "theirs")
    expected = logits(model)
    model.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(longwave.load(tmp_path / "again")), expected)
    continued = longwave.load(longwave.save(model, tmp_path / "ours"))
    with pytest.raises(ValueError, match=r"Use longwave\.save"):  # by now it is somebody's choice
        continued.save_pretrained(tmp_path / "refused")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yarn", "llama3", "linear"])
def test_compiles_in_one_graph_as_the_plain_model_does(name: str) -> None:
    model = follow_config(scaled("llama", SCALINGS[name]))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = torch.arange(2 * L)[None] * 7 % 120 + 3
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, logits(model, 2 * L)[:1])
    torch._dynamo.reset()


@pytest.mark.parametrize("rope", [["yarn"], "yarn", {"rope_type": ["yarn"]}])
def test_a_config_of_another_shape_stays_plain(rope: Any) -> None:
    model = scaled("llama", SCALINGS["yarn"])
    before = logits(model)
    vars(model.config)["rope_parameters"] = rope  # past its own checks
    assert find_extension(follow_config(model)) is None and torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("default", None),
        ("proportional", None),
        ("linear, its length before or after", "'linear' stays part of the plain model: its original length is unkno"),
        ("an unknown key", "'llama3' stays part of the plain model: the config's beta is unknown"),
        ("betas that no ramp has", "'yarn' stays part of the plain model: "),
    ],
)
def test_a_known_scaling_that_stays_plain_says_why(
    name: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = scaled("llama", UNKNOWN[name])
    with caplog.at_level(log.INFO, "longwave"):
        follow_config(model)
    messages = [record.getMessage() for record in caplog.records if record.name == "longwave"]
    assert len(messages) == (said is not None) and (said is None or said in messages[0])


@pytest.fixture
def exported(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """What our export to transformers writes, with changes to its record."""

    def write(model: PreTrainedModel, t: float, **record: Any) -> Path:
        own = longwave.save(model, tmp_path / "own", tokenizer=tokenizer)
        folder = export(own, tmp_path / "export", factor=t).folder
        config = json.loads((folder / "config.json").read_text())
        config["longwave"] |= record
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.mark.parametrize("factor", [1.5, 4.0, 16 / 3])
def test_an_export_comes_back_bit_for_bit(
    factor: float, llama: LlamaForCausalLM, exported: Callable[..., Path], tmp_path: Path
) -> None:
    longwave.extend(llama, "yarn", max_factor=16)
    folder = exported(llama, factor)
    native = LlamaForCausalLM.from_pretrained(folder).eval()
    model = longwave.load(folder)
    (rotary,) = longwave.rotaries(model)
    assert torch.equal(rotary.frequencies.solve(factor), native.model.rotary_emb.inv_freq)
    assert rotary.trajectory.attention_scaling(factor) == native.model.rotary_emb.attention_scaling
    length = math.floor(factor * L)
    assert rotary.max_length == length
    handle = longwave.extension(model)
    assert (handle.recognised, handle.unscaled, handle.schedule) == (True, True, Static(factor))
    assert model.config.longwave["factor"] == factor
    assert torch.equal(logits(model, length), logits(native, length))
    frozen, before = longwave.snapshot(model, factor), longwave.snapshot(llama, factor)
    assert torch.equal(frozen.factors, before.factors)
    assert frozen.attention_scaling == before.attention_scaling
    assert open_source(folder).factor(None, None) == factor
    twice = json.loads((export(folder, tmp_path / "twice").folder / "config.json").read_text())
    once = json.loads((folder / "config.json").read_text())
    for record in (once["longwave"], twice["longwave"]):
        del record["method"]
    assert twice == once
    again = longwave.load(longwave.save(model, tmp_path / "ours"))
    assert torch.equal(logits(again, length), logits(native, length))
    longwave.set_policy(model, "fixed", 1.0)
    assert torch.equal(logits(model, length), logits(longwave.restore(llama), length))
    assert torch.equal(logits(longwave.restore(model), length), logits(native, length))


def test_an_export_of_a_model_that_was_trained_with_factors(exported: Callable[..., Path]) -> None:
    """Their λ(1) is in the record."""
    model = scaled("llama", SCALINGS["longrope"])
    short = model.config.rope_parameters["short_factor"]
    longwave.extend(model, "ntk", max_factor=4)
    folder = exported(model, 4.0, short_factor=short)
    again = longwave.load(folder)
    native = LlamaForCausalLM.from_pretrained(folder).eval()
    (rotary,) = longwave.rotaries(again)
    assert torch.equal(rotary.frequencies.solve(4.0), native.model.rotary_emb.inv_freq)
    assert torch.equal(rotary.base.inv_freq, model.model.rotary_emb.base.inv_freq)
    assert torch.equal(
        longwave.snapshot(again, 4.0).factors, torch.tensor(native.config.rope_parameters["long_factor"])
    )


def test_an_export_that_serves_more_than_its_t_says(llama: LlamaForCausalLM, exported: Callable[..., Path]) -> None:
    """Llama 3.1: t = 8, but 16·L tokens."""
    longwave.extend(llama, "yarn", max_factor=16)
    folder = exported(llama, 3.0, length=5 * L)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["original_max_position_embeddings"] = config["max_position_embeddings"] = 5 * L
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": config["rope_parameters"]}))
    model, native = longwave.load(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    (rotary,) = longwave.rotaries(model)
    assert (rotary.max_length, rotary.schedule) == (5 * L, Static(3.0))
    assert torch.equal(rotary.frequencies.solve(3.0), native.model.rotary_emb.inv_freq)
    assert (logits(model, 5 * L) - logits(native, 5 * L)).abs().max() < 1e-5
    assert torch.equal(longwave.snapshot(model, 3.0).factors, longwave.snapshot(llama, 3.0).factors)


@pytest.mark.parametrize(("family", "log_n"), [("llama", 0.0), ("llama", 1.0), ("phi3", 0.0)])
def test_an_export_of_a_model_with_an_attention_scaling_of_its_own(
    family: str, log_n: float, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """A longrope model has one within L, too."""
    model = scaled(family, SCALINGS["longrope"])
    own, short = model.model.rotary_emb.attention_scaling, model.config.rope_parameters["short_factor"]
    assert own > 1.1
    longwave.extend(model, "yarn", max_factor=4, log_n=log_n)
    folder = exported(model, 4.0, short_factor=short, attention_scaling=own)
    again, native = longwave.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(again) - logits(native)).abs().max() < 1e-5
    for source in (model, again):
        longwave.set_policy(source, "fixed", 1.0)
    assert torch.equal(logits(again, L), logits(model, L))
    with under(again, "none", [L]), under(model, "none", [L]):
        assert torch.equal(logits(again, L), logits(model, L))
    once, twice = longwave.snapshot(model, 4.0).with_log_n(log_n), longwave.snapshot(again, 4.0)
    assert torch.equal(once.factors, twice.factors)
    assert twice.attention_scaling == pytest.approx(once.attention_scaling, rel=1e-12)
    config = json.loads((export(folder, tmp_path / "twice").folder / "config.json").read_text())
    attention = native.config.rope_parameters["attention_factor"]
    assert config["rope_parameters"]["attention_factor"] == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize(
    "record",
    [
        {"factor": 1.0}, {"length": 300}, {"factor": "x"}, {"short_factor": [1.0, 2.0]}, {"short_factor": [{}] * 8},
        {"attention_scaling": 0.0}, {"attention_scaling": -1.0}, {"attention_scaling": math.inf},
    ],
)  # fmt: skip
def test_a_record_that_is_not_the_configs(record: dict, llama: LlamaForCausalLM, exported: Callable[..., Path]) -> None:
    longwave.extend(llama, "yarn", max_factor=4)
    assert find_extension(longwave.load(exported(llama, 4.0, **record))) is None


def test_an_export_at_t_1_is_plain(llama: LlamaForCausalLM, exported: Callable[..., Path]) -> None:
    before = logits(llama)
    longwave.extend(llama, "yarn", max_factor=4)
    model = longwave.load(exported(llama, 1.0))
    assert find_extension(model) is None and torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "yarn"), ("llama", "longrope"), ("phi3", "longrope"), ("llama", "dynamic")]
)
def test_generation_with_and_without_a_cache(family: str, name: str) -> None:
    model = follow_config(scaled(family, SCALINGS[name]))
    unit = longwave.rotaries(model)[0].trajectory.rope.original_length
    prompt, new = torch.arange(unit - 6)[None] * 7 % 120 + 3, 12
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt, **settings)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **settings))


@pytest.fixture(scope="module")
def _quiet() -> Iterator[None]:
    """transformers remarks on factors that are not the ratio of the lengths."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def agrees(parameters: dict[str, Any]) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=64,
        max_position_embeddings=131072, rope_parameters=parameters,
    )  # fmt: skip
    inv_freq, attention = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    (rotary,) = longwave.rotaries(follow_config(LlamaForCausalLM(config)))
    frozen = rotary.trajectory.at(parameters["factor"])
    allowed = RTOL * frozen.inv_freq + RAMP * rotary.trajectory.at(1.0).inv_freq
    assert ((frozen.inv_freq - inv_freq.double()).abs() <= allowed).all()
    assert frozen.attention_scaling == pytest.approx(attention, rel=1e-9)
    assert rotary.factor_for(131072) == parameters["factor"]  # whatever the rounding of 131072/L


FACTORS = st.floats(1.01, 64, allow_subnormal=False)
LENGTHS = st.integers(256, 32768)
BASES = st.sampled_from([1e4, 5e5, 1e6, 123456.7])


@pytest.mark.usefixtures("_quiet")
@given(factor=FACTORS, original=LENGTHS, theta=BASES, fast=st.floats(8, 64), slow=st.floats(0.5, 4),
       truncate=st.booleans(), attention=st.none() | st.floats(0.5, 2))  # fmt: skip
@example(factor=19.0, original=9700, theta=1e4, fast=9.0, slow=3.625, truncate=False, attention=None)
@example(factor=19.0, original=9700, theta=1e6, fast=9.0, slow=3.625, truncate=False, attention=None)
@example(factor=19.0, original=9700, theta=5e5, fast=9.0, slow=3.625, truncate=False, attention=None)
@settings(max_examples=40, deadline=None)
def test_every_yarn_config(
    factor: float, original: int, theta: float, fast: float, slow: float, truncate: bool, attention: float | None
) -> None:
    parameters = {
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, "rope_theta": theta,
        "beta_fast": fast, "beta_slow": slow, "truncate": truncate,
    }  # fmt: skip
    agrees(parameters if attention is None else parameters | {"attention_factor": attention})


@pytest.mark.usefixtures("_quiet")
@given(factor=FACTORS, original=LENGTHS, theta=BASES, low=st.floats(0.5, 4), width=st.floats(1, 16))
@settings(max_examples=40, deadline=None)
def test_every_llama3_config(factor: float, original: int, theta: float, low: float, width: float) -> None:
    agrees({
        "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, "rope_theta": theta,
        "low_freq_factor": low, "high_freq_factor": low + width,
    })  # fmt: skip
