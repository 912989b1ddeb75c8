"""Learned scalars and weights that follow t: nothing within L, and every way to run a model agrees beyond."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

import longwave
from longwave.attention.engine import Scoring, attend, dense
from longwave.attention.layout import Layout
from longwave.attention.placement import place
from longwave.attention.spectrum import Spectrum
from longwave.attention.two_band import TwoBand
from longwave.extensions.adapter import LoRA
from longwave.extensions.handle import find_extension

L = 32
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": L, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{**SIZES, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**{**SIZES, "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1})
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 16})
    ),
}
METHODS = {"bands": "two-band", "engine-ready": "ntk"}


def learned(model: PreTrainedModel, method: str = "two-band", **how: Any) -> PreTrainedModel:
    """Extended, with parts that are far from their start, as training would leave them."""
    parts = {"head_scalars": True, "adapter": LoRA(4, 4.0)} | how
    longwave.extend(model, method, max_factor=8, **parts)
    handle = longwave.extension(model)
    with torch.no_grad():
        for parameter in handle.learned["adapter"]:
            parameter.normal_(std=0.2)
        for parameter in handle.learned["heads"]:
            parameter.uniform_(0, 1.5)
    return model


def text(tokens: int, rows: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


@pytest.fixture
def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES["llama"]().eval()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@torch.no_grad()
def test_within_l_logits_are_the_plain_models_bit_for_bit(model: PreTrainedModel, method: str) -> None:
    short, long = text(L, rows=2), text(100, rows=2)
    names, plain, beyond = [name for name, _ in model.named_parameters()], model(short).logits, model(long).logits
    learned(model, method)
    untrained = copy.deepcopy(model)
    for parameter in longwave.extension(untrained).learned["adapter"]:
        parameter.zero_()
    assert torch.equal(model(short).logits, plain)
    assert (model(long).logits - untrained(long).logits).abs().max() > 1e-3, "the adapter does nothing"
    longwave.restore(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(short).logits, plain) and torch.equal(model(long).logits, beyond)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@torch.no_grad()
def test_rows_of_several_t_run_as_they_run_alone(model: PreTrainedModel, method: str) -> None:
    learned(model, method)
    short, long = text(20), text(100, seed=2)
    rows = torch.cat([torch.cat([torch.zeros(1, 80, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(rows)
    mask[0, :80] = 0
    both = model(rows, attention_mask=mask).logits
    assert (both[1] - model(long).logits[0]).abs().max() < 2e-5
    assert (both[0, 80:] - model(short).logits[0]).abs().max() < 2e-5


@torch.no_grad()
def test_packed_sequences_have_the_gate_of_their_own_length(llama: PreTrainedModel) -> None:
    learned(llama, "ntk")
    first, second = text(20), text(90, seed=2)
    positions = torch.cat([torch.arange(20), torch.arange(90)])[None]
    packed = llama(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    assert (packed[:, :20] - llama(first).logits).abs().max() < 2e-5
    assert (packed[:, 20:] - llama(second).logits).abs().max() < 2e-5


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@torch.no_grad()
def test_generation_with_a_cache_is_generation_without(llama: PreTrainedModel, method: str) -> None:
    learned(llama, method)
    prompt = text(40, rows=2)
    mask = torch.ones_like(prompt)
    ours = llama.generate(prompt, attention_mask=mask, max_new_tokens=60, do_sample=False)
    longwave.set_policy(llama, "fixed", 100 / L)
    tokens = prompt
    for _ in range(60):
        tokens = torch.cat([tokens, llama(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, tokens)
    longwave.set_policy(llama)
    chunked = llama.generate(prompt, attention_mask=mask, max_new_tokens=60, do_sample=False, prefill_chunk_size=7)
    assert torch.equal(ours, chunked)
    static = StaticCache(config=llama.config, max_cache_len=100)
    assert torch.equal(
        ours, llama.generate(prompt, attention_mask=mask, max_new_tokens=60, do_sample=False, past_key_values=static)
    )


@torch.no_grad()
def test_a_batch_of_short_and_long_prompts_generates_as_each_alone(llama: PreTrainedModel) -> None:
    learned(llama)
    short, long = text(8), text(60, seed=2)
    rows = torch.cat([torch.cat([torch.zeros(1, 52, dtype=torch.long), short], 1), long])
    mask = (rows > 0).long()
    both = llama.generate(rows, attention_mask=mask, max_new_tokens=16, do_sample=False)
    for row, alone in zip(both, (short, long), strict=True):
        mine = llama.generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=16, do_sample=False)
        assert torch.equal(row[-16:], mine[0, -16:])


@torch.no_grad()
def test_a_growing_text_is_read_again_where_the_gate_moves(llama: PreTrainedModel) -> None:
    learned(llama, "none", head_scalars=False)  # frequencies stand still: the weights alone move
    longwave.set_policy(llama, "grow")
    prompt = text(20)
    grown = llama.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=80, do_sample=False)
    without = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=80, do_sample=False, use_cache=False
    )
    assert torch.equal(grown, without)


@torch.no_grad()
def test_a_cache_belongs_to_one_t(llama: PreTrainedModel) -> None:
    learned(llama, "none", head_scalars=False)
    cache = DynamicCache(config=llama.config)
    llama(text(30), past_key_values=cache)
    with pytest.raises(ValueError, match="the cache was filled at t = 1"):
        llama(text(40), past_key_values=cache)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_steps_follow_the_gate(llama: PreTrainedModel) -> None:
    learned(llama, "ntk")
    step = torch.compile(llama)
    for t, tokens in ((1.0, 30), (4.0, 100), (2.0, 60), (1.0, 30)):
        longwave.set_policy(llama, "fixed", t)
        assert (step(text(tokens)).logits - llama(text(tokens)).logits).abs().max() < 2e-5


@torch.no_grad()
def test_copies_and_pickles_have_parts_of_their_own(llama: PreTrainedModel) -> None:
    learned(llama)
    long = text(100)
    before = llama(long).logits
    for other in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert torch.equal(other(long).logits, before)
        for parameter in [*longwave.extension(other).learned["heads"], *longwave.extension(other).learned["adapter"]]:
            parameter.add_(0.1)
        assert not torch.equal(other(long).logits, before)
        assert torch.equal(llama(long).logits, before)


@pytest.mark.parametrize("rank", [4, "full"])
@torch.no_grad()
def test_saved_and_loaded_exactly_beside_the_base(tmp_path: Path, rank: int | str) -> None:
    torch.manual_seed(0)
    base = FAMILIES["llama"]().eval()
    base.save_pretrained(tmp_path / "base")
    model = learned(copy.deepcopy(base), adapter=LoRA(rank, 4.0))
    short, long = text(L), text(100)
    longwave.save(model, tmp_path / "whole")
    longwave.save(model, tmp_path / "named", base=tmp_path / "base")
    assert not (tmp_path / "named" / "model").exists()
    for name in ("whole", "named"):
        loaded = longwave.load(tmp_path / name)
        assert torch.equal(loaded(long).logits, model(long).logits)
        assert torch.equal(loaded(short).logits, base(short).logits)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_peft_reads_the_adapter_as_the_model_at_the_longest_trained_window(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = FAMILIES["llama"]().eval()
    model = learned(copy.deepcopy(base), "none", head_scalars=False)
    longwave.save(model, tmp_path / "ours")
    longwave.set_policy(model, "fixed", 4.0)
    theirs = PeftModel.from_pretrained(base, tmp_path / "ours" / "adapter")
    assert (theirs(text(60)).logits - model(text(60)).logits).abs().max() < 1e-6


def test_a_base_that_is_gone_or_another_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = FAMILIES["llama"]()
    base.save_pretrained(tmp_path / "base")
    longwave.save(learned(base), tmp_path / "ours", base=tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"its base model is not at .*base.* Move the base back"):
        longwave.load(tmp_path / "ours")
    torch.manual_seed(1)
    FAMILIES["llama"]().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"was trained on other weights than those in .*base"):
        longwave.load(tmp_path / "ours")


def test_mass_of_each_head_is_a_bias_on_each_far_logit_with_its_gradient() -> None:
    """The band's log-sum-exp gets the term once; a dense softmax gets it on every far logit."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 96, 8, dtype=torch.float64, generator=generator) for heads in (4, 2, 2))
    attention = TwoBand.create(original_length=L, max_factor=8)
    theta = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
    spectrum, positions = Spectrum(theta, theta / 3), torch.arange(96)[None]
    bands = attention.bands(3.0)
    placed = place(bands, spectrum, positions, positions)
    mass = torch.tensor([0.3, 0.7, 1.1, 1.9], dtype=torch.float64)
    ours = attend(q, k, v, placed, Scoring(Layout(), 8**-0.5, mass))
    assert torch.allclose(ours, dense(q, k, v, placed, Scoring(Layout(), 8**-0.5, mass)), atol=1e-12)
    learned_mass = mass.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda beta: attend(q[:, :, :48], k[:, :, :48], v[:, :, :48], place(bands, spectrum, positions[:, :48],
                            positions[:, :48]), Scoring(Layout(), 8**-0.5, beta)), (learned_mass,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"adapter": lambda: LoRA(0, 4.0)}, "rank of an adapter must be a whole number >= 1 or 'full', got 0"),
        ({"adapter": lambda: LoRA(4, 1.0)}, "needs a trained factor over 1, got 1.0"),
        ({"adapter": lambda: LoRA(4, 4.0, gate="soft")}, "unknown gate 'soft'"),
        ({"adapter": lambda: LoRA(4, 4.0, targets=("nowhere",))}, "no linear layer of the model is named nowhere"),
        ({"adapter": lambda: LoRA(10_000, 4.0)}, "r must be at most 64, the largest rank that these layers can have"),
        ({"method": "infllm", "head_scalars": lambda: True}, "infllm has no gradient, and so no learned scalars"),
    ],
)
def test_parts_that_cannot_be_leave_the_model_plain(llama: PreTrainedModel, how: dict[str, Any], message: str) -> None:
    state = {name: parameter.requires_grad for name, parameter in llama.named_parameters()}
    method = how.pop("method", "two-band")
    with pytest.raises(ValueError, match=message):
        longwave.extend(llama, method, max_factor=8, **{name: make() for name, make in how.items()})
    assert find_extension(llama) is None
    assert {name: parameter.requires_grad for name, parameter in llama.named_parameters()} == state


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("capped", (0, 0.5, 1, 1)), ("ramp", (0, 0.5, 1, 1.5)), ("hard", (0, 1, 1, 1))],
)
@torch.no_grad()
def test_the_gate_at_1_2_4_and_8_for_windows_of_4_l(
    llama: PreTrainedModel, shape: str, expected: tuple[float, ...]
) -> None:
    """As a number, as rows of a batch, and as what a layer adds."""
    learned(llama, "none", head_scalars=False, adapter=LoRA(4, 4.0, gate=shape))
    adapter, factors = longwave.extension(llama).adapter, (1.0, 2.0, 4.0, 8.0)
    assert adapter is not None
    assert [adapter.gate.at(t) for t in factors] == pytest.approx(expected)
    layer, x = llama.model.layers[0].mlp.up_proj, torch.randn(4, 1, 64)
    longwave.set_policy(llama, "fixed", torch.tensor(factors))
    whole = x @ layer.get_delta_weight("longwave").mT
    added = layer(x) - layer.get_base_layer()(x)
    assert (added - torch.tensor(expected)[:, None, None] * whole).abs().max() < 1e-5


@torch.no_grad()
def test_each_head_has_its_own_mass_and_temperature_in_the_layers(llama: PreTrainedModel) -> None:
    learned(llama, adapter=None)
    heads, long = longwave.extension(llama).heads, text(100)
    assert heads is not None and heads.mass is not None
    for part in (heads.mass, heads.log_n):
        for row in range(2):
            before = llama(long).logits
            part[row, 1] += 0.5
            assert (llama(long).logits - before).abs().max() > 1e-5, "a scalar of a head changes nothing"


def test_a_layer_that_runs_again_for_its_gradient_has_the_t_of_its_forward(llama: PreTrainedModel) -> None:
    learned(llama, "ntk")
    llama.train()
    short, long = text(40), text(120, seed=2)
    weights = longwave.extension(llama).learned["adapter"]

    def gradients(again: bool) -> list[Tensor]:
        if again:
            llama.gradient_checkpointing_enable({"use_reentrant": False})
        llama.zero_grad()
        (llama(short, labels=short).loss + llama(long, labels=long).loss).backward()
        return [weight.grad.clone() for weight in weights if weight.grad is not None]

    for once, twice in zip(gradients(False), gradients(True), strict=True):
        assert (once - twice).abs().max() < 1e-5 * once.abs().max() + 1e-8


def test_a_step_within_l_has_a_gradient_of_zero_for_all_parts(llama: PreTrainedModel) -> None:
    learned(llama).train()
    short = text(20)
    llama(short, labels=short).loss.backward()
    for part in ("heads", "adapter"):
        for parameter in longwave.extension(llama).learned[part]:
            assert parameter.grad is not None and not parameter.grad.any()


@torch.no_grad()
def test_a_row_of_a_mixed_batch_in_bfloat16_is_the_row_alone(llama: PreTrainedModel) -> None:
    learned(llama, "none", head_scalars=False).to(torch.bfloat16)
    rows = text(100, rows=2)
    longwave.set_policy(llama, "fixed", torch.tensor([2.0, 5.0]))
    both = llama(rows).logits
    for row, t in enumerate((2.0, 5.0)):
        longwave.set_policy(llama, "fixed", t)
        assert torch.equal(both[row], llama(rows).logits[row])


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_forward_takes_t_from_its_own_text(llama: PreTrainedModel) -> None:
    learned(llama, "ntk")
    expected = {tokens: llama(text(tokens)).logits for tokens in (40, 100)}
    step = torch.compile(llama, backend="aot_eager")  # what is traced counts, and not the kernels
    for tokens in (100, 40, 100):
        llama(text(60))
        assert (step(text(tokens)).logits - expected[tokens]).abs().max() < 2e-5


def test_a_base_in_the_output_or_with_other_weights_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = FAMILIES["llama"]()
    base.save_pretrained(tmp_path / "base")
    model = learned(base)
    longwave.save(model, tmp_path / "whole")
    with pytest.raises(ValueError, match="lies in the output"):
        longwave.save(model, tmp_path / "whole", base=tmp_path / "whole", overwrite=True)
    longwave.load(tmp_path / "whole")
    longwave.save(model, tmp_path / "whole", base=tmp_path / "base", overwrite=True)
    assert not (tmp_path / "whole" / "model").exists()
    with torch.no_grad():
        base.model.norm.weight.add_(0.1)
        base.model.embed_tokens.weight.add_(0.1)
    with pytest.raises(ValueError, match="its own weights were changed"):
        longwave.save(model, tmp_path / "other", base=tmp_path / "base")
    longwave.restore(model)
    longwave.extend(model, "ntk", max_factor=8)
    longwave.save(model, tmp_path / "whole", overwrite=True)
    assert not (tmp_path / "whole" / "adapter").exists()


def test_a_name_that_no_layer_has_is_told(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="no linear layer of the model is named v_porj"):
        longwave.extend(llama, max_factor=8, adapter=LoRA(4, 4.0, targets=("q_proj", "v_porj")))


def test_a_prior_beside_another_in_the_name_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="option prior is 'linear' in the name of the method, and 'yarn' beside it"):
        longwave.extend(llama, "clex:prior=linear", prior="yarn", max_factor=8)


@torch.no_grad()
def test_experts_see_rows_of_one_t_and_refuse_what_hides_the_rows() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).eval()
    plain = model(text(L)).logits
    learned(model)
    assert torch.equal(model(text(L)).logits, plain)
    assert torch.isfinite(model(text(100)).logits).all()
