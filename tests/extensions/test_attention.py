"""Attention methods inside models: what holds for every method on every family."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import longwave
from longwave.attention import ATTENTIONS

L = 32
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": L, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
SEVEN = {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{**SIZES, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}})
    ),
    "qwen2, 7 heads to a key": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **SEVEN})),
    "cohere, interleaved": lambda: CohereForCausalLM(CohereConfig(**SIZES)),
    "gemma3, mixed": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 16})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**{**SIZES, "sliding_window": None})),
}
FAST = "gpt-neox", "gemma3, mixed"  # a part of a head is turned; a part of the layers has bands
EACH = [family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
EXACT = {"rtol": 0, "atol": 5e-6}


def factor_of(name: str) -> float:
    return {"string": 1.25, "ms-poe": 1.2}.get(name, 4.0)


@pytest.fixture(params=EACH)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


@pytest.fixture(params=sorted(ATTENTIONS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(name for name, kind in ATTENTIONS.items() if not kind.prefill_differs))
def one_function(request: pytest.FixtureRequest) -> str:
    """A method that reads a prompt as it decodes. tests/attention/test_selection_models.py has the others."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def text(columns: int, rows: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, columns))


def at_t(model: PreTrainedModel, method: str) -> tuple[PreTrainedModel, int]:
    """The model at its largest t, and a length there."""
    t = factor_of(method)
    longwave.extend(model, method, max_factor=t)
    return longwave.set_policy(model, "fixed", t), int(t * L) - 1


def steps(model: PreTrainedModel, ids: Tensor, sizes: list[int]) -> Tensor:
    """Logits of a text that is read in parts."""
    cache, parts = None, []
    for part in ids.split(sizes, dim=1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


def test_within_l_the_model_is_the_plain_one_and_restore_gives_it_back(model: PreTrainedModel, method: str) -> None:
    ids, longer = text(L, 2), text(38)
    plain, beyond = model(ids).logits, model(longer).logits
    longwave.extend(model, method, max_factor=factor_of(method))
    assert torch.equal(model(ids).logits, plain)
    assert not torch.equal(model(longer).logits, beyond)
    longwave.restore(model)
    assert torch.equal(model(ids).logits, plain) and torch.equal(model(longer).logits, beyond)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_cached_and_chunked_are_the_whole(model: PreTrainedModel, one_function: str) -> None:
    model, tokens = at_t(model, one_function)
    ids = text(tokens, 2)
    whole = model(ids).logits
    torch.testing.assert_close(steps(model, ids, [tokens - 12] + [1] * 12), whole, **EXACT)
    torch.testing.assert_close(steps(model, ids, [7] * (tokens // 7) + [tokens % 7]), whole, **EXACT)


def test_a_row_does_not_depend_on_its_padding_or_its_neighbours(model: PreTrainedModel, method: str) -> None:
    longwave.extend(model, method, max_factor=factor_of(method))
    long = int(factor_of(method) * L) - 1
    lengths = [long, 36, 20]  # beyond L, at another t, and within L
    ids, mask = text(long, 3), torch.ones(3, long, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, : long - length] = 0
    together = model(ids, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, long - length :]).logits
        torch.testing.assert_close(together[row : row + 1, long - length :], alone, **EXACT)


@pytest.mark.slow
def test_generate_with_every_cache(model: PreTrainedModel, one_function: str) -> None:
    longwave.extend(model, one_function, max_factor=factor_of(one_function))
    prompt = text(int(factor_of(one_function) * L) - 8, 2)
    mask = torch.ones_like(prompt)
    mask[1, :5] = 0
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    found = model.generate(prompt, **how)
    for other in ({"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 9}):
        assert torch.equal(model.generate(prompt, **how, **other), found), other


@pytest.mark.parametrize("family", EACH)
def test_gradients_reach_the_weights(family: str) -> None:
    model = FAMILIES[family]()
    model, tokens = at_t(model, "two-band")
    model.train()
    ids = text(tokens, 2)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        tiled = model(ids).logits
    torch.testing.assert_close(model(ids).logits, tiled, **EXACT)


def test_a_learned_trajectory_gets_gradients_through_the_bands(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex+two-band", max_factor=4)
    longwave.set_policy(llama, "fixed", 3.0)
    ids = torch.randint(1, 97, (1, 150))
    llama(ids, labels=ids).loss.backward()
    (trajectory,) = longwave.extension(llama).trajectories
    assert all(parameter.grad is not None for parameter in trajectory.parameters())
    assert float(trajectory.field.down_proj.grad.abs().max()) > 0  # the others begin where it is 0


def test_saved_and_loaded(llama: LlamaForCausalLM, method: str, tmp_path: Path) -> None:
    options = {"two-band": {"window": 20, "mass": 0.5}, "self-extend": {"group": 9}}.get(method, {})
    longwave.extend(llama, method, max_factor=factor_of(method), **options)
    ids = torch.randint(1, 97, (1, 76))
    logits = llama(ids).logits
    longwave.save(llama, tmp_path / "out")
    again = longwave.load(tmp_path / "out")
    assert torch.equal(again(ids).logits, logits)
    assert longwave.extension(again).attention == longwave.extension(llama).attention


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied_and_pickled(llama: LlamaForCausalLM, method: str, how: Callable[[Any], Any]) -> None:
    ids = torch.randint(1, 97, (1, 76))
    plain = llama(ids).logits
    longwave.extend(llama, method, max_factor=factor_of(method))
    logits = llama(ids).logits
    other = how(llama)
    longwave.restore(llama)
    assert torch.equal(other(ids).logits, logits)
    assert torch.equal(llama(ids).logits, plain)
    longwave.restore(other)
    assert torch.equal(other(ids).logits, plain)


def test_under_peft(llama: LlamaForCausalLM, method: str) -> None:
    peft = pytest.importorskip("peft")
    ids = torch.randint(1, 97, (1, 76))
    longwave.extend(llama, method, max_factor=factor_of(method))
    logits = llama(ids).logits
    wrapped = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert not torch.equal(wrapped(ids).logits, logits)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(ids).logits, logits)


def test_under_eager_attention_it_is_the_same_method(llama: LlamaForCausalLM, method: str) -> None:
    ids = torch.randint(1, 97, (1, 76))
    longwave.extend(llama, method, max_factor=factor_of(method))
    logits = llama(ids).logits
    llama.set_attn_implementation("eager")
    torch.testing.assert_close(llama(ids).logits, logits, **EXACT)
    short = llama(ids[:, :64]).logits
    longwave.restore(llama)
    assert torch.equal(llama(ids[:, :64]).logits, short)
    assert llama.config._attn_implementation == "eager"


def test_in_bfloat16_it_is_close_to_float32(llama: LlamaForCausalLM, method: str) -> None:
    ids = torch.randint(1, 97, (1, 76))
    longwave.extend(llama, method, max_factor=factor_of(method))
    exact = llama(ids).logits
    longwave.restore(llama)
    half = copy.deepcopy(llama)
    half.load_state_dict({name: tensor.bfloat16().float() for name, tensor in llama.state_dict().items()})
    rounded = longwave.extend(half, method, max_factor=factor_of(method))(ids).logits
    longwave.restore(half)
    half = half.to(torch.bfloat16)
    found = longwave.extend(half, method, max_factor=factor_of(method))(ids).logits.float()
    assert (found - rounded).abs().max() < 2 * float(exact.abs().max()) * 2**-7
