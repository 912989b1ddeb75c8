"""The methods that `extend` puts on the model object: they follow it, and do not lose the extension."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

import longwave

L = 64
IDS = torch.arange(2 * L)[None] * 7 % 120 + 3


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def pickled(model: PreTrainedModel) -> PreTrainedModel:
    return pickle.loads(pickle.dumps(model))


def torch_saved(model: PreTrainedModel) -> PreTrainedModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [pickled, torch_saved])
@pytest.mark.parametrize("log_n", [False, True])
@pytest.mark.parametrize("method", ["yarn", "clex"])
def test_a_pickled_model_is_extended_and_on_its_own(
    copied: Callable[[PreTrainedModel], PreTrainedModel], method: str, log_n: bool, llama: LlamaForCausalLM
) -> None:
    plain = logits(llama)
    longwave.extend(llama, method, max_factor=4, log_n=log_n)
    expected = logits(llama)
    again = copied(llama)
    handle = longwave.extension(again)
    assert handle.host is again and handle.dial is not longwave.extension(llama).dial
    assert torch.equal(logits(again), expected)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(IDS, **settings), llama.generate(IDS, **settings))
    longwave.set_policy(again, "fixed", 4.0)
    assert torch.equal(logits(llama), expected) and not torch.equal(logits(again), expected)
    assert torch.equal(logits(longwave.restore(again)), plain)
    assert torch.equal(logits(llama), expected)


def test_log_n_stays_under_another_attention(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    with_log_n = logits(llama)
    for name in ("eager", {"": "sdpa"}, "longwave-eager"):
        llama.set_attn_implementation(name)
        assert longwave.extension(llama).log_n == 1.0
        torch.testing.assert_close(logits(llama), with_log_n)
    assert llama.config._attn_implementation == "longwave-eager"
    longwave.restore(llama)
    assert llama.config._attn_implementation == "eager"
    llama.set_attn_implementation("sdpa")
    longwave.extend(llama, "yarn", max_factor=4, log_n=False)
    assert (logits(llama) - with_log_n).abs().max() > 3e-4
    llama.set_attn_implementation("eager")
    assert (llama.config._attn_implementation, longwave.extension(llama).log_n) == ("eager", 0.0)


@pytest.mark.parametrize("name", ["no_such_attention", "flex_attention_of_mine"])
def test_a_refused_attention_leaves_the_model_as_it_was(name: str, llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    before = logits(llama)
    with pytest.raises(ValueError, match=name):
        llama.set_attn_implementation(name)
    assert longwave.extension(llama).log_n == 1.0 and torch.equal(logits(llama), before)


def test_an_attention_that_cannot_have_log_n_is_refused(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    before = logits(llama)
    with pytest.raises(ValueError, match="cannot have log-n scaling"):
        llama.set_attn_implementation("paged|eager")  # it has no mask of its own
    assert longwave.extension(llama).log_n == 1.0 and torch.equal(logits(llama), before)
