"""Caches of bounded size, under methods that see the first keys and the last ones only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

import longwave
from longwave.extensions.bounded import SPARE, BoundedLayer

BOUNDED = "streaming-llm", "lm-infinite"


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("method", BOUNDED)
def test_the_tokens_are_those_of_a_cache_of_everything(llama: LlamaForCausalLM, method: str, policy: str) -> None:
    longwave.extend(llama, method, max_factor=16)
    longwave.set_policy(llama, policy)
    prompt = torch.randint(1, 256, (2, 400))
    mask = torch.ones_like(prompt)
    mask[1, :380] = 0  # a row within L, which sees its first keys
    for ids, own in ((prompt[:1], mask[:1]), (prompt, mask)):
        how: dict[str, Any] = {"attention_mask": own, "max_new_tokens": 400, "do_sample": False, "eos_token_id": None}
        if policy == "fit" and len(ids) > 1:
            how["max_new_tokens"] = 40
        how["return_dict_in_generate"] = True
        bounded = llama.generate(ids, **how)
        whole = llama.generate(ids, **how, past_key_values=DynamicCache(config=llama.config))
        assert torch.equal(bounded.sequences, whole.sequences)
        assert isinstance(bounded.past_key_values.layers[0], BoundedLayer)
        held, every = (found.past_key_values.layers[0].keys.shape[-2] for found in (bounded, whole))
        padding = 380 if len(ids) > 1 else 0
        assert every == bounded.sequences.shape[1] - 1
        assert held <= padding + 2 * 10 + 64 + SPARE + 1


@pytest.mark.slow
def test_memory_stays_as_it_is(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "streaming-llm", max_factor=1000)
    longwave.set_policy(llama, "grow")
    found = llama.generate(
        torch.randint(1, 256, (1, 50)), max_new_tokens=2000, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True,
    )  # fmt: skip
    layer = found.past_key_values.layers[0]
    assert layer.get_seq_length() == 2049 and layer.keys.shape[-2] <= 64 + 8 + SPARE


@pytest.mark.slow
@pytest.mark.parametrize("method", BOUNDED)
def test_growth_reads_nothing_again(llama: LlamaForCausalLM, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bands are the model's own attention up to L, and do not depend on t: one cache serves all lengths."""
    longwave.extend(llama, method, max_factor=64)
    longwave.set_policy(llama, "grow")
    read: list[int] = []
    llama.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    prompt = torch.randint(1, 256, (1, 40))
    found = llama.generate(prompt, max_new_tokens=300, do_sample=False, eos_token_id=None)
    assert read == [40] + [1] * 299
    again = llama.generate(prompt, max_new_tokens=300, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(found, again)


@pytest.mark.slow
def test_other_methods_read_again_where_the_bands_change(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "self-extend", max_factor=8)
    longwave.set_policy(llama, "grow")
    read: list[int] = []
    llama.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    prompt = torch.randint(1, 256, (1, 40))
    found = llama.generate(prompt, max_new_tokens=200, do_sample=False, eos_token_id=None)
    assert [columns for columns in read if columns > 1] == [40, 65, 129]
    assert torch.equal(
        found, llama.generate(prompt, max_new_tokens=200, do_sample=False, eos_token_id=None, use_cache=False)
    )


def test_a_cache_that_has_lost_columns_is_not_cut() -> None:
    layer = BoundedLayer(2, 5)
    keys = torch.arange(600.0).reshape(1, 1, 600, 1)
    layer.update(keys[..., :100, :], keys[..., :100, :])
    layer.crop(-40)
    assert layer.is_croppable and layer.get_seq_length() == 60
    for start in range(60, 600, 20):
        returned, _ = layer.update(keys[..., start : start + 20, :], keys[..., start : start + 20, :])
        assert torch.equal(returned.flatten().long(), layer.columns)
    assert not layer.is_croppable and layer.get_mask_sizes(3) == (603, 0)
    with pytest.raises(ValueError, match="cannot be cut back"):
        layer.crop(-1)
    layer.reset()
    assert layer.is_croppable and layer.get_seq_length() == 0


@pytest.mark.slow
def test_a_conversation_goes_on_without_end(llama: LlamaForCausalLM, tokenizer: Any) -> None:
    longwave.extend(llama, "streaming-llm", max_factor=100)
    longwave.set_policy(llama, "grow")
    talk = longwave.Conversation(llama, tokenizer)
    for _ in range(8):
        talk.say("and then? " * 8, max_new_tokens=60)
    assert talk.length > 8 * 64
    assert talk._cache.layers[0].keys.shape[-2] <= 64 + 8 + SPARE + 100


@pytest.mark.parametrize("method", BOUNDED)
def test_speculation_keeps_every_column(llama: LlamaForCausalLM, method: str) -> None:
    """A draft that is not accepted is cut off the cache again, which a cache of bounded size cannot do."""
    longwave.extend(llama, method, max_factor=32)
    prompt = torch.randint(1, 256, (1, 600))
    how: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    alone = llama.generate(prompt, **how)
    assert torch.equal(llama.generate(prompt, **how, prompt_lookup_num_tokens=3), alone)
    drafted = llama.generate(prompt, **how, assistant_model=copy.deepcopy(llama))
    assert torch.equal(drafted, alone)


def test_a_conversation_may_speculate(llama: LlamaForCausalLM, tokenizer: Any) -> None:
    longwave.extend(llama, "streaming-llm", max_factor=100)
    answers: list[str] = []
    for speculation in ({}, {"prompt_lookup_num_tokens": 3}):
        talk = longwave.Conversation(llama, tokenizer, do_sample=False, **speculation)
        answers.append(talk.say("and then? " * 50, max_new_tokens=10))
    assert answers[0] == answers[1]
