"""Masks that hide tokens within a row: beyond L a row is what it is without them, within L the plain model runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import longwave

L = 64
METHODS = ("yarn", "linear", "ntk", "two-band", "yarn+dca", "streaming-llm")
EXACT = {"rtol": 0, "atol": 3e-5}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def made() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=L, initializer_range=0.2, eos_token_id=None,
            pad_token_id=0, bos_token_id=0,
        )
    ).eval()  # fmt: skip


def with_gap(length: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[:, start:end] = 0
    return ids, mask


def positions_of(kind: str, mask: Tensor) -> dict[str, Any]:
    counted = mask.cumsum(-1) - 1
    kinds = {
        "none": None,
        "counted": counted,
        "zero": counted.masked_fill(mask == 0, 0),
        "one": counted.masked_fill(mask == 0, 1),
    }
    return {} if kinds[kind] is None else {"position_ids": kinds[kind]}


@pytest.mark.parametrize("kind", ["none", "counted", "zero", "one"])
@pytest.mark.parametrize("method", METHODS)
def test_beyond_l_a_gap_is_as_if_the_tokens_were_not_there(method: str, kind: str) -> None:
    model = longwave.extend(made(), method, max_factor=8)
    ids, mask = with_gap(200, 100, 110)
    found = model(ids, attention_mask=mask, **positions_of(kind, mask)).logits[:, mask[0].bool()]
    torch.testing.assert_close(found, model(ids[mask.bool()][None]).logits, **EXACT)


@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("method", METHODS)
def test_generate_beyond_l_with_a_gap(method: str, policy: str) -> None:
    model = longwave.set_policy(longwave.extend(made(), method, max_factor=8), policy)
    ids, mask = with_gap(120, 60, 70)
    how: dict[str, Any] = {
        "max_new_tokens": 20,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    found = model.generate(ids, attention_mask=mask, **how)
    alone = model.generate(ids[mask.bool()][None], **how)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(alone.logits), **EXACT)


@pytest.mark.parametrize("hidden", [(0, 12), (30, 40), (50, 60)])
@pytest.mark.parametrize("method", METHODS)
def test_within_l_the_plain_model_runs_whatever_the_mask_hides(method: str, hidden: tuple[int, int]) -> None:
    model = made()
    ids, mask = with_gap(60, *hidden)
    plain = model(ids, attention_mask=mask).logits
    placed = model(ids, attention_mask=mask, **positions_of("one", mask)).logits
    longwave.extend(model, method, max_factor=8)
    assert torch.equal(model(ids, attention_mask=mask).logits, plain)
    assert torch.equal(model(ids, attention_mask=mask, **positions_of("one", mask)).logits, placed)


@pytest.mark.parametrize("hidden", [(0, 12), (20, 30)])
@pytest.mark.parametrize("method", ["yarn", "two-band"])
def test_a_cache_within_l_goes_on_with_the_positions_of_the_plain_model(method: str, hidden: tuple[int, int]) -> None:
    model = made()
    ids, mask = with_gap(60, *hidden)

    def last() -> Tensor:
        first = model(ids[:, :50], attention_mask=mask[:, :50], use_cache=True)
        return model(ids[:, 50:], attention_mask=mask, past_key_values=first.past_key_values).logits

    plain = last()
    longwave.extend(model, method, max_factor=8)
    assert torch.equal(last(), plain)


@pytest.mark.parametrize("method", ["yarn", "two-band", "none"])
def test_a_padded_cache_from_within_l_is_never_read_at_other_positions(method: str) -> None:
    """The keys of 60 columns stand where the plain model has them. Beyond L the row has to be read again."""
    model = longwave.extend(made(), method, max_factor=8)
    ids, mask = with_gap(100, 0, 40)
    first = model(ids[:, :60], attention_mask=mask[:, :60], use_cache=True)
    if method == "none":  # the same frequencies at every length: only distances count
        found = model(ids[:, 60:], attention_mask=mask, past_key_values=first.past_key_values).logits
        torch.testing.assert_close(found, model(ids, attention_mask=mask).logits[:, 60:], **EXACT)
        return
    with pytest.raises(ValueError, match=r"the cache was filled at t = 1, but 100 tokens run at t = 1\.5625"):
        model(ids[:, 60:], attention_mask=mask, past_key_values=first.past_key_values)


def test_no_tokens_are_the_plain_models_business() -> None:
    model = made()
    empty = torch.zeros(1, 0, dtype=torch.long)

    def outcome() -> str:
        try:
            return str(model(empty).logits.shape)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    plain = outcome()
    longwave.extend(model, "two-band", max_factor=8)
    assert outcome() == plain
    longwave.restore(model)
    longwave.extend(model, "yarn", max_factor=8)
    assert outcome() == plain
