"""Attention methods and rows of every kind: packed, with holes, at given positions, at several t; their caches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import longwave

METHOD = "leaky-rerope"
EXACT = {"rtol": 0, "atol": 2e-5}


def made(length: int = 32, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=length, initializer_range=0.2, eos_token_id=None,
            pad_token_id=0, bos_token_id=0, **config,
        )
    ).eval()  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> LlamaForCausalLM:
    return longwave.set_policy(longwave.extend(made(), METHOD, max_factor=8), "fixed", 4.0)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 97, (2, 700))


def test_a_bounded_cache_keeps_what_rows_within_l_see(ids: torch.Tensor) -> None:
    model = made(1024)
    how: dict[str, Any] = {
        "max_new_tokens": 20,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    plain = model.generate(ids[:1, :500], **how)
    longwave.extend(model, "streaming-llm", max_factor=2, window=100)
    found = model.generate(ids[:1, :500], **how)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(plain.logits), **EXACT)


@pytest.mark.parametrize("policy", [("fit", None), ("fixed", 4.0), ("fixed", torch.tensor([4.0]))])
def test_packed_rows_are_refused_under_every_policy(model: LlamaForCausalLM, ids: torch.Tensor, policy: Any) -> None:
    longwave.set_policy(model, *policy)
    packed = torch.cat([torch.arange(64), torch.arange(64)])[None]
    with pytest.raises(ValueError, match="rows were packed with several"):
        model(ids[:1, :128], position_ids=packed)


def test_packed_rows_within_l_are_the_plain_model_s(ids: torch.Tensor) -> None:
    model, packed = made(), torch.cat([torch.arange(16), torch.arange(16)])[None]
    plain = model(ids[:1, :32], position_ids=packed).logits
    longwave.extend(model, METHOD, max_factor=8)
    assert torch.equal(model(ids[:1, :32], position_ids=packed).logits, plain)


def test_positions_that_do_not_continue_the_cache(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    positions = torch.arange(71)[None] + 25
    assert bool(model(ids[:1, :71], position_ids=positions).logits.isfinite().all())  # without a cache they may
    model.config.use_cache = True
    with pytest.raises(ValueError, match="position_ids do not continue those of the cache"):
        first = model(ids[:1, :70], position_ids=positions[:, :70], use_cache=True)
        model(ids[:1, 70:71], position_ids=positions[:, 70:], past_key_values=first.past_key_values)


def test_left_padding_with_a_cache_and_without_positions(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    padded, mask = (
        torch.cat([torch.zeros(1, 20, dtype=torch.long), ids[:1, :71]], 1),
        torch.ones(1, 91, dtype=torch.long),
    )
    mask[:, :20] = 0
    first = model(padded[:, :90], attention_mask=mask[:, :90], use_cache=True)
    found = model(padded[:, 90:], attention_mask=mask, past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(found, model(ids[:1, :71]).logits[:, -1], **EXACT)


def test_holes_in_the_padding_mask(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    mask = torch.ones(1, 80, dtype=torch.long)
    mask[:, 30:40] = 0
    positions = mask.cumsum(-1) - 1
    found = model(ids[:1, :80], attention_mask=mask, position_ids=positions).logits[:, -1]
    expected = model(torch.cat([ids[:1, :30], ids[:1, 40:80]], 1)).logits[:, -1]
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("method", [METHOD, "two-band"])
def test_decoding_after_right_padding(method: str, ids: torch.Tensor) -> None:
    model = longwave.set_policy(longwave.extend(made(), method, max_factor=8), "fixed", 4.0)
    prompt, mask = ids[:, :60].clone(), (torch.arange(60) < torch.tensor([[60], [50]])).long()
    first = model(prompt, attention_mask=mask, use_cache=True)
    new, longer = ids[:, 690:691], torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    positions = torch.tensor([[60], [50]])
    found = model(new, attention_mask=longer, position_ids=positions, past_key_values=first.past_key_values).logits[
        1, -1
    ]
    torch.testing.assert_close(found, model(torch.cat([ids[1:, :50], new[1:]], 1)).logits[0, -1], **EXACT)


def test_a_t_for_each_row(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    text = ids[:1, :60].expand(3, -1)
    longwave.set_policy(model, "fixed", torch.tensor([1.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="longer than"):
        model(ids[:1, :600].expand(3, -1))
    together = model(text).logits
    for row, t in enumerate((1.0, 2.0, 2.0)):
        longwave.set_policy(model, "fixed", t)
        torch.testing.assert_close(together[row : row + 1], model(text[:1]).logits, **EXACT)


def test_new_weights_of_a_trajectory_count_at_once(ids: torch.Tensor) -> None:
    model = longwave.set_policy(longwave.extend(made(), "clex+string", max_factor=4), "fixed", 4.0)
    positions = torch.arange(120)[None]
    before = model(ids[:1, :120], position_ids=positions).logits
    (trajectory,) = longwave.extension(model).trajectories
    for parameter in trajectory.parameters():
        parameter.add_(0.3)
    after = model(ids[:1, :120], position_ids=positions).logits
    assert not torch.equal(after, before)
    assert torch.equal(after, model(ids[:1, :120], position_ids=positions.clone()).logits)


def test_attention_weights_within_l_and_none_beyond(ids: torch.Tensor) -> None:
    model = made(attn_implementation="eager")
    plain = model(ids[:1, :20], output_attentions=True).attentions
    longwave.extend(model, METHOD, max_factor=4)
    found = model(ids[:1, :20], output_attentions=True).attentions
    assert all(map(torch.equal, found, plain)) and len(found) == 2


def test_masks_that_are_not_causal_are_refused_beyond_l(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    from transformers.masking_utils import create_causal_mask

    hidden = model.model.embed_tokens(ids[:1, :60])
    mask = create_causal_mask(
        model.config, hidden, None, None, or_mask_function=lambda b, h, q, k: (q < 10) & (k < 10)
    )  # as image tokens that see one another
    with pytest.raises(ValueError, match="lets a token see those before it"):
        model(ids[:1, :60], attention_mask=mask)


def test_forwards_in_two_threads_keep_their_caches(ids: torch.Tensor) -> None:
    model = longwave.set_policy(longwave.extend(made(), "token-select", max_factor=8), "fixed", 4.0)
    failed: list[BaseException] = []

    def read(row: int, length: int) -> None:
        try:
            with torch.no_grad():
                first = model(ids[row : row + 1, :length], use_cache=True)
                for column in range(length, length + 30):
                    model(ids[row : row + 1, column : column + 1], past_key_values=first.past_key_values)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(row, 60 + 7 * row)) for row in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
