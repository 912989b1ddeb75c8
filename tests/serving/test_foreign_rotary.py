"""Rotary modules of transformers that look up rows: what vLLM's Transformers backend runs under the plugin."""

from __future__ import annotations

import pytest
import torch
from tiny import LENGTH, tiny_model

import longwave
from longwave.serving.profiles import Profile, Profiles
from longwave.serving.rows import Refused
from longwave.serving.vllm.foreign import extend_foreign

FACTORS, PADDING = (1.0, 2.0, 4.0), 3


def profiles(model, **more) -> Profiles:
    """Those of an extended model, as `longwave export --profiles` writes them."""
    found = [longwave.snapshot(model, t) for t in FACTORS]
    return Profiles(
        LENGTH,
        tuple(
            Profile(
                each.factor,
                each.max_length,
                tuple(each.factors.tolist()),
                each.attention_scaling,
                tuple(each.inv_freq.tolist()),
            )
            for each in found
        ),
        **more,
    )


def attentive(family: str):
    """A random model whose attention has something to choose."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def extended(family: str):
    return longwave.extend(attentive(family), "yarn", max_factor=4)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "glm", "cohere"])  # parts of heads, whole heads, neighbours
def test_rows_are_the_model_at_each_t(family: str) -> None:
    model, plain, rows = extended(family), attentive(family), attentive(family)
    starts = extend_foreign(rows, profiles(model), PADDING)
    assert starts == [0, LENGTH + PADDING, LENGTH + 2 * LENGTH + 2 * PADDING]
    torch.manual_seed(0)
    for start, t in zip(starts, FACTORS, strict=True):
        ids = torch.randint(2, 100, (1, int(t * LENGTH)))
        positions = torch.arange(ids.shape[1])[None]
        found = rows(ids, position_ids=start + positions, use_cache=False).logits
        if t == 1:
            assert torch.equal(found, plain(ids, use_cache=False).logits)
        else:
            longwave.set_policy(model, "fixed", t)
            wanted = model(ids, use_cache=False).logits
            assert torch.allclose(found, wanted, atol=2e-5), (found - wanted).abs().max()
            assert not torch.allclose(plain(ids, use_cache=False).logits, wanted, atol=1e-2), "t changes something"


def test_half_precision_keeps_the_bits_of_the_plain_model() -> None:
    plain, rows = tiny_model("gpt_neox").bfloat16(), tiny_model("gpt_neox").bfloat16()
    for module in (plain.gpt_neox.rotary_emb, rows.gpt_neox.rotary_emb):
        module.inv_freq = module.original_inv_freq = tiny_model("gpt_neox").gpt_neox.rotary_emb.inv_freq
    extend_foreign(rows, profiles(extended("gpt_neox")), 0)
    ids = torch.randint(2, 100, (2, 40))
    assert torch.equal(rows(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)


def test_what_is_refused() -> None:
    found = profiles(extended("gpt_neox"))
    with pytest.raises(Refused, match=r"has no rotary module that is known. Serve it by another engine"):
        extend_foreign(tiny_model("gpt2"), found, 0)
    with pytest.raises(Refused, match="where log-n does not reach the queries"):
        extend_foreign(tiny_model("gpt_neox"), profiles(extended("gpt_neox"), log_n=1.0), 0)
    with pytest.raises(
        Refused, match=r"takes x, position_ids and has 8 frequencies. The profiles are for one set of 2"
    ):
        extend_foreign(tiny_model("llama"), found, 0)
    with pytest.raises(Refused, match="has no rotary module that is known"):
        extend_foreign(tiny_model("gemma3_text"), profiles(extended("llama")), 0)
    other = tiny_model("gpt_neox")
    other.gpt_neox.rotary_emb.inv_freq = other.gpt_neox.rotary_emb.inv_freq * 1.01
    with pytest.raises(Refused, match="rotates by other frequencies at t = 1 than the profile was made for"):
        extend_foreign(other, found, 0)
