"""extend and restore on whole models, and what a model without rotary module is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tiny import tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

import longwave
from longwave.extensions.attach import rope_of, suspended
from longwave.extensions.handle import extension
from longwave.methods import METHODS
from longwave.rope import Rope
from longwave.schedule import Ceiling

L = 64
OPTIONS = {"longrope": {"long_factor": [1.0 + i for i in range(8)]}}


def logits(model: nn.Module, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **inputs).logits


def ids(rows: int = 2, length: int = L) -> torch.Tensor:
    return torch.randint(1, 256, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_bitwise_the_plain_model_within_l_and_after_restore(llama: LlamaForCausalLM, method: str) -> None:
    plain, far = logits(llama, ids()), logits(llama, ids(length=3 * L))
    assert longwave.extend(llama, method, max_factor=4, **OPTIONS.get(method, {})) is llama
    assert torch.equal(logits(llama, ids()), plain)
    assert torch.equal(logits(llama, ids(length=3 * L)), far) is (method == "none")
    assert longwave.restore(llama) is llama
    assert torch.equal(logits(llama, ids()), plain) and torch.equal(logits(llama, ids(length=3 * L)), far)
    assert not [name for name in llama.state_dict() if "trajectory" in name]
    assert "generate" not in vars(llama) and "save_pretrained" not in vars(llama)


def test_partial_rotary(neox: GPTNeoXForCausalLM) -> None:
    plain = logits(neox, ids())
    longwave.extend(neox, "clex", max_factor=4)
    assert rope_of(neox).rotary_dim == 8
    assert torch.equal(logits(neox, ids()), plain)


def test_context_manager_restores_after_an_exception(llama: LlamaForCausalLM) -> None:
    with pytest.raises(RuntimeError), longwave.extended(llama, "ntk@ceiling", max_factor=4) as model:
        assert longwave.rotaries(model)[0].schedule == Ceiling()
        raise RuntimeError
    longwave.extend(llama, "ntk", max_factor=4)


def test_suspended_brings_the_same_extension_back(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex", max_factor=4)
    before, (rotary,) = logits(llama, ids(length=3 * L)), longwave.rotaries(llama)
    with suspended(llama):
        assert type(llama.model.rotary_emb).__name__ == "LlamaRotaryEmbedding"
    assert longwave.rotaries(llama) == [rotary]
    assert torch.equal(logits(llama, ids(length=3 * L)), before)


def test_a_copy_of_an_extended_model_is_its_own(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex", max_factor=4)
    twin = copy.deepcopy(llama)
    for parameter in longwave.rotaries(twin)[0].trajectory.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(logits(twin, ids(length=3 * L)), logits(llama, ids(length=3 * L)))
    longwave.set_policy(twin, "fixed", 2.0)
    assert longwave.rotaries(llama)[0].factor is None
    assert twin.generate.__self__ is twin
    longwave.restore(twin)
    assert longwave.rotaries(llama)


def test_a_rotary_module_per_layer_shares_one_trajectory() -> None:
    model = longwave.extend(tiny_model("moshi"), "clex", max_factor=4, log_n=False)
    assert len(longwave.rotaries(model)) == 2 and len(extension(model).trajectories) == 1


def test_rope_is_read_from_the_model(llama: LlamaForCausalLM) -> None:
    rope = rope_of(llama)
    assert torch.equal(rope.inv_freq, llama.model.rotary_emb.inv_freq.double())
    assert (rope.base, rope.original_length) == (10_000.0, L)
    assert torch.equal(rope_of(longwave.extend(llama, "ntk", max_factor=2)).inv_freq, rope.inv_freq)


def test_llama3_scaling_is_where_the_trajectory_starts() -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=512, rope_parameters=scaling,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    plain = logits(model, ids(length=512))
    rope = rope_of(longwave.extend(model, "ntk", max_factor=2))
    assert rope.original_length == 512 and rope.base == 5e5
    assert rope.inv_freq[-1] < 0.2 * 5e5 ** (-14 / 16)  # the slow pairs are already divided by 8
    assert torch.equal(logits(model, ids(length=512)), plain)


def test_a_longrope_model_starts_from_its_short_factors() -> None:
    """Its buffer holds those, and they were good for the length before the switch."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=512, original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 64,
        },
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    plain = logits(model, ids())
    longwave.extend(model, "yarn", max_factor=4)
    assert rope_of(model).original_length == 64
    assert torch.equal(logits(model, ids()), plain)


OVERWRITTEN = {
    "dynamic": {"factor": 4.0},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": L},
}


@pytest.mark.parametrize("rope_type", OVERWRITTEN)
def test_a_long_forward_before_extend_changes_nothing(rope_type: str) -> None:
    """transformers overwrites the frequencies of such models when it sees a long input."""
    parameters = {"rope_type": rope_type, "rope_theta": 1e4, **OVERWRITTEN[rope_type]}
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=L, rope_parameters=parameters,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    start, plain = rope_of(model).inv_freq, logits(model, ids(length=L - 1))
    far = logits(model, ids(length=3 * L))
    assert not torch.equal(model.model.rotary_emb.inv_freq.double(), start)
    longwave.extend(model, "yarn", max_factor=4)
    assert torch.equal(rope_of(model).inv_freq, start)
    assert torch.equal(logits(model, ids(length=L - 1)), plain)
    with suspended(model):
        assert torch.equal(logits(model, ids(length=3 * L)), far)
    assert torch.equal(logits(model, ids(length=L - 1)), plain)
    assert torch.equal(logits(longwave.restore(model), ids(length=3 * L)), far)


@pytest.mark.parametrize(
    ("model_type", "has"),
    [
        ("gptj", "rotary positions computed inside its attention"),
        ("bloom", "ALiBi"),
        ("gpt2", r"learned absolute positions \(wpe\)"),
        ("opt", "absolute positions"),
        ("mamba", "no position embedding"),
    ],
)
def test_a_model_without_rotary_module_is_told_what_it_has(model_type: str, has: str) -> None:
    with pytest.raises(ValueError, match=f"no rotary module to extend: it has {has}"):
        longwave.extend(tiny_model(model_type), "ntk", max_factor=2)


def test_falcon_with_alibi_has_a_rotary_module_that_it_does_not_use() -> None:
    config = tiny_config("falcon")
    config.alibi = True
    with pytest.raises(ValueError, match="it has ALiBi biases"):
        longwave.extend(AutoModelForCausalLM.from_config(config), "ntk", max_factor=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "yarm", "max_factor": 2}, "Did you mean 'yarn'"),
        ({"method": 5, "max_factor": 2}, "method must be a name such as 'yarn', got 5"),
        ({"method": "ntk", "max_factor": "8"}, "max_factor must be a finite number >= 1, got '8'"),
        ({"method": "ntk", "max_factor": 0.5}, "max_factor must be a finite number >= 1, got 0.5"),
        ({"method": "ntk", "max_factor": 2, "schedule": "sometimes"}, "unknown schedule 'sometimes'"),
        ({"method": "ntk@static=4", "max_factor": 2}, "static=4 is over max_factor 2"),
        ({"method": "ntk", "schedule": "steps=1/4", "max_factor": 2}, "steps=1/4 is over max_factor 2"),
        ({"method": "ntk", "max_factor": 2, "beyond": "ignore"}, "Available: error, clamp"),
        ({"method": "ntk", "max_factor": 2, "slop": 1}, "slop"),
        ({"method": "clex", "max_factor": 2, "prior": "alibi"}, "unknown clex prior 'alibi'"),
        ({"method": "ntk", "max_factor": 2, "original_length": 1}, "original_length must be at least 2"),
        ({"method": "ntk", "max_factor": 2, "original_length": 0}, "original_length must be at least 2 tokens.* got 0"),
        ({"method": "ntk", "max_factor": 2, "original_length": 64.5}, "a whole number, got 64.5"),
        ({"method": "ntk", "max_factor": 2, "original_length": "64"}, "got '64'"),
        ({"method": "ntk", "max_factor": 2, "schedule": 3}, "schedule must be continuous, .*, got 3"),
        ({"method": "ntk", "max_factor": 2, "log_n": "yes"}, "True, False or an exponent >= 0, got 'yes'"),
        ({"method": "ntk", "max_factor": 2, "log_n": float("nan")}, "log_n must be .* got nan"),
        ({"method": "ntk", "max_factor": 2, "trajectory": 3}, "trajectory must be a longwave.Trajectory, got 3"),
        ({"method": "ntk", "max_factor": float("inf")}, "max_factor must be a finite number >= 1, got inf"),
    ],
)
def test_bad_arguments_leave_the_model_plain(llama: LlamaForCausalLM, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        longwave.extend(llama, **arguments)
    with pytest.raises(ValueError, match="not extended"):
        longwave.rotaries(llama)
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "other", [{"max_factor": 8}, {"prior": "yarn"}, {"original_length": 32}, {"amplification": 3}, {"slop": 1}]
)
def test_a_ready_trajectory_keeps_its_own_settings(llama: LlamaForCausalLM, other: dict) -> None:
    (trajectory,) = extension(longwave.extend(llama, "clex", max_factor=4)).trajectories
    longwave.restore(llama)
    with pytest.raises(ValueError, match=f"{next(iter(other))} .* is not the trajectory's"):
        longwave.extend(llama, trajectory=trajectory, **{"max_factor": 4} | other)
    same = {"max_factor": 4, "prior": trajectory.options()["prior"], "original_length": L}
    assert extension(longwave.extend(llama, trajectory=trajectory, **same)).trajectories == [trajectory]


def test_a_trajectory_of_another_model(llama: LlamaForCausalLM) -> None:
    own = rope_of(llama)
    half = METHODS["ntk"].build(Rope(own.inv_freq[: own.inv_freq.numel() // 2], L), 4)
    with pytest.raises(ValueError, match=r"has 4 frequencies, the model 8\. Build it from this model's rope"):
        longwave.extend(llama, trajectory=half, max_factor=4)


def test_asking_whether_it_is_trained_draws_nothing(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex", max_factor=4)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    assert not longwave.extension(llama).is_trained
    assert torch.equal(torch.rand(1), first)


@pytest.mark.parametrize("factor", [torch.tensor(2.0), [2.0], 2])
def test_other_ways_to_write_a_factor(llama: LlamaForCausalLM, factor: object) -> None:
    longwave.extend(llama, "ntk", max_factor=4)
    want = logits(longwave.set_policy(llama, "fixed", 2.0), ids(rows=1))
    longwave.set_policy(llama, "fit")
    assert torch.equal(logits(longwave.set_policy(llama, "fixed", factor), ids(rows=1)), want)


def test_extending_twice_is_an_error(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "ntk", max_factor=2)
    with pytest.raises(ValueError, match=r"already extended. Call longwave.restore"):
        longwave.extend(llama, "yarn", max_factor=2)


def test_a_part_of_an_extended_model_is_not_extended_again(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "ntk", max_factor=2)
    with pytest.raises(ValueError, match="already extended"):
        longwave.extend(llama.model, "yarn", max_factor=2)
    longwave.restore(llama)
    part = longwave.extend(llama.model, "yarn", max_factor=2)
    assert longwave.extension(part).method == "yarn"
    with pytest.raises(ValueError, match="already extended"):
        longwave.extend(llama, "yarn", max_factor=2)


def test_something_else_than_a_model() -> None:
    with pytest.raises(ValueError, match="expected a transformers model, got Linear"):
        longwave.extend(nn.Linear(2, 2), "ntk", max_factor=2)


def test_save_pretrained_is_refused_while_extended(llama: LlamaForCausalLM, tmp_path) -> None:
    longwave.extend(llama, "ntk", max_factor=2)
    with pytest.raises(ValueError, match=r"longwave\.save\(model, folder\)"):
        llama.save_pretrained(tmp_path)
    longwave.restore(llama).save_pretrained(tmp_path)


def test_a_path_is_no_model() -> None:
    with pytest.raises(ValueError, match=r"extend takes a model, got str\. Load it first"):
        longwave.extend("my-model", "yarn", max_factor=4)
    with pytest.raises(ValueError, match="restore takes a model, got NoneType"):
        longwave.restore(None)
    with pytest.raises(ValueError, match="a model, got str"), longwave.extended("my-model", "yarn", max_factor=4):
        pass
    with pytest.raises(ValueError, match="a model, got str"):
        longwave.extension("my-model")
    with pytest.raises(ValueError, match="a model, got str"):
        longwave.set_policy("my-model", "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grow", 2.0), "others take none"),
        (("fits",), "Available: fit, grow, fixed"),
        (("fixed",), "needs a factor"),
        (("fit", 2.0), "others take none"),
        (("fixed", 4.5), r"between 1 and max_factor 4, got 4.5"),
        (("fixed", torch.tensor([1.0, 0.5])), "between 1 and max_factor 4"),
        (("fixed", float("nan")), "between 1 and max_factor 4, got nan"),
        (("fixed", "4x"), "a number or a tensor .batch., got '4x'"),
        (("fixed", torch.tensor([])), "a number or a tensor .batch."),
    ],
)
def test_set_policy_refuses(llama: LlamaForCausalLM, arguments: tuple, message: str) -> None:
    longwave.extend(llama, "ntk", max_factor=4)
    with pytest.raises(ValueError, match=message):
        longwave.set_policy(llama, *arguments)


def test_the_handle_is_shown_in_a_line(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4)
    expected = "Extension(yarn@continuous, L=64, max_factor=4, log_n=0, policy=fit)"
    assert repr(longwave.extension(llama)) == expected


def test_snapshot(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "linear", max_factor=4)
    frozen = longwave.snapshot(llama, 2.0)
    torch.testing.assert_close(frozen.stretch, torch.full_like(frozen.stretch, 2.0))
    with pytest.raises(ValueError, match="not extended"):
        longwave.snapshot(longwave.restore(llama), 2.0)
    longwave.extend(llama, "two-band", max_factor=4)
    with pytest.raises(ValueError, match=r"^no snapshot can express two-band: it gives each band an own rotation\.$"):
        longwave.snapshot(llama, 2.0)


def test_defect_left_padding_shifts_keys_against_queries(llama: LlamaForCausalLM) -> None:
    """Keys are turned by their own position ids: a padded row gives the logits of the row alone."""
    longwave.set_policy(longwave.extend(llama, "clex", max_factor=4), "fixed", 3.0)
    text, pad = ids(1, 150), 40
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.long), text], dim=1)
    mask = (torch.arange(190) >= pad).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ours = logits(llama, padded, attention_mask=mask, position_ids=positions)[:, pad:]
    torch.testing.assert_close(ours, logits(llama, text), atol=1e-5, rtol=1e-5)


def test_defect_packed_positions_crash(llama: LlamaForCausalLM) -> None:
    """Two documents in one row, positions starting again: each as if it were alone at the same t."""
    longwave.set_policy(longwave.extend(llama, "clex", max_factor=4), "fixed", 2.0)
    first, second = ids(1, 100), ids(1, 110)[:, 10:]
    positions = torch.cat([torch.arange(100), torch.arange(100)])[None]
    packed = logits(llama, torch.cat([first, second], dim=1), position_ids=positions)
    torch.testing.assert_close(packed[:, :100], logits(llama, first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 100:], logits(llama, second), atol=1e-5, rtol=1e-5)


def test_defect_model_type_guessed_from_the_path(llama: LlamaForCausalLM, tmp_path) -> None:
    folder = tmp_path / "my-phi-gpt-neox-mixtral"
    llama.save_pretrained(folder)
    model = longwave.extend(longwave.load(folder), "ntk", max_factor=4)
    assert type(model) is LlamaForCausalLM
    longwave.extend(llama, "ntk", max_factor=4)
    assert torch.equal(logits(model, ids(length=3 * L)), logits(llama, ids(length=3 * L)))


def test_frequencies_that_a_cast_has_rounded_already(llama: LlamaForCausalLM) -> None:
    llama.to(torch.bfloat16)
    plain = logits(llama, ids())
    with pytest.warns(UserWarning, match="rounded to torch.bfloat16"):
        longwave.extend(llama, "ntk", max_factor=4)
    assert torch.equal(logits(llama, ids()), plain)


def test_peft_trains_and_merges_the_field(llama: LlamaForCausalLM, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    longwave.extend(llama, "clex", max_factor=4)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["rotary_emb"])
    model = peft.get_peft_model(llama, settings)
    (trajectory,) = extension(model).trajectories
    optimizer = torch.optim.SGD(trajectory.parameters(), lr=10.0)
    model(ids(length=2 * L), labels=ids(length=2 * L)).loss.backward()
    optimizer.step()
    trained = logits(model.eval(), ids(length=2 * L))
    merged = model.merge_and_unload()
    assert longwave.rotaries(merged)[0].trajectory is trajectory
    torch.testing.assert_close(logits(merged, ids(length=2 * L)), trained, atol=1e-5, rtol=1e-5)
    loaded = longwave.load(longwave.save(merged, tmp_path / "out"))
    assert torch.equal(logits(loaded, ids(length=2 * L)), logits(merged, ids(length=2 * L)))


def test_no_warnings(llama: LlamaForCausalLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longwave.restore(longwave.extend(llama, "clex", max_factor=4))


def wrapped(model: LlamaForCausalLM) -> nn.Module:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["rotary_emb"])
    return peft.get_peft_model(model, settings).eval()


def test_peft_s_copy_of_the_rotary_module_follows_the_dial(llama: LlamaForCausalLM) -> None:
    """PEFT copies a module together with its dial; nothing here may look at the modules in between."""
    longwave.extend(llama, "yarn", max_factor=4)
    text = ids(1, 100)
    alone = llama.generate(text, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    model = wrapped(llama)
    fit = logits(model, text)
    longwave.set_policy(model, "fixed", 4.0)
    assert not torch.equal(logits(model, text), fit)
    longwave.set_policy(model, "fit")
    assert torch.equal(logits(model, text), fit)
    together = model.generate(input_ids=text, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(together, alone)
    longwave.extension(model).dial.set(factor=4.0)  # as training does
    assert not torch.equal(logits(model, text), fit)


@torch.no_grad()
def test_bands_follow_peft_s_copy_of_the_rotary_module(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex+two-band", max_factor=4)
    own = longwave.extension(llama).trajectory
    model, text = wrapped(llama), ids(1, 200)
    trained = longwave.extension(model).trajectory
    assert trained is not own
    before = model(input_ids=text).logits
    for parameter in trained.parameters():
        parameter.add_(torch.randn_like(parameter))
    after = model(input_ids=text).logits
    assert not torch.allclose(after, before, atol=1e-3)
    merged = model.merge_and_unload()
    assert longwave.extension(merged).trajectory is trained
    assert torch.allclose(merged(input_ids=text).logits, after, atol=1e-4)


def test_restore_after_peft_has_unwrapped(llama: LlamaForCausalLM) -> None:
    model = longwave.extend(wrapped(llama), "yarn", max_factor=4)
    merged = longwave.restore(model.merge_and_unload())
    assert type(merged.model.rotary_emb).__name__ == "LlamaRotaryEmbedding"


def test_the_base_of_an_extended_model_and_what_contains_one(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4)
    longwave.set_policy(llama.model, "fixed", 2.0)
    assert longwave.extension(llama).dial.now.factor == 2.0
    longwave.restore(llama.model)
    assert type(llama.model.rotary_emb).__name__ == "LlamaRotaryEmbedding" and "generate" not in vars(llama)
    longwave.extend(llama.model, "yarn", max_factor=4)
    assert longwave.extension(llama).host is llama.model
    longwave.restore(llama)
    assert type(llama.model.rotary_emb).__name__ == "LlamaRotaryEmbedding"


def test_an_extend_that_fails_leaves_nothing(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(METHODS["yarn"].build, "to", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    assert llama.config._attn_implementation == "sdpa"
    assert type(llama.model.rotary_emb).__name__ == "LlamaRotaryEmbedding"


def test_two_models_of_one_config_scale_once(llama: LlamaForCausalLM) -> None:
    twin = LlamaForCausalLM(llama.config).eval()
    twin.load_state_dict(llama.state_dict())
    longwave.extend(llama, "none", max_factor=4, log_n=1.0)
    longwave.extend(twin, "none", max_factor=4, log_n=1.0)
    assert torch.equal(logits(twin, ids(1, 200)), logits(llama, ids(1, 200)))
