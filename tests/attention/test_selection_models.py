"""Selections and Ms-PoE inside models of six families: caches, batches, padding, and the plain model within L."""

from __future__ import annotations

import pytest
import torch
from selection_models import BUILD, FACTOR, L, alike, peaked, step_by_step, text_ids

import longwave
from longwave.attention import ATTENTIONS
from longwave.attention.rows import RowWise

ANSWER = 3  # tokens that are decoded
FAST = "neox", "gemma3"  # a part of a head is turned; a part of the layers is extended


@pytest.fixture(params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BUILD])
def model(request):
    with torch.no_grad():
        yield peaked(request.param)
    longwave.restore(peaked(request.param))


@pytest.fixture(params=list(FACTOR))
def method(request):
    return request.param


def extended_at_its_end(model, method):
    """The model at the largest t of a method, and ids of so many tokens."""
    longwave.extend(model, method, max_factor=FACTOR[method])
    longwave.set_policy(model, "fixed", FACTOR[method])
    return text_ids(2, int(FACTOR[method] * L) - 2)


def test_every_method_that_remembers_is_tested_here():
    assert set(FACTOR) == {name for name, kind in ATTENTIONS.items() if issubclass(kind, RowWise)}


def test_within_L_and_restored_it_is_the_plain_model_bit_for_bit(model, method):
    ids = text_ids(2, 3 * L)
    short, long = model(ids[:, :L]).logits, model(ids).logits
    longwave.extend(model, method, max_factor=FACTOR[method])
    assert torch.equal(model(ids[:, :L]).logits, short)
    longwave.restore(model)
    assert torch.equal(model(ids[:, :L]).logits, short)
    assert torch.equal(model(ids).logits, long)


def test_it_changes_what_lies_beyond(model, method):
    plain = model(text_ids(2, int(FACTOR[method] * L) - 2)).logits
    ids = extended_at_its_end(model, method)
    assert not alike(model(ids).logits, plain)


def test_a_prompt_in_one_forward_is_the_prompt_in_parts_and_decoding_goes_on_alike(model, method):
    ids = extended_at_its_end(model, method)
    prompt = ids.shape[1] - ANSWER
    part = min(prompt, 3 * max(longwave.extension(model).attention.prefill_chunk, 5))
    decoded = list(range(prompt, ids.shape[1]))
    whole = step_by_step(model, ids, decoded)
    assert alike(whole[:, :prompt], model(ids[:, :prompt]).logits)  # without a cache
    assert alike(whole, step_by_step(model, ids, [*range(part, prompt, part), *decoded]))


def test_a_row_is_alone_in_its_batch_and_behind_padding(model, method):
    ids = extended_at_its_end(model, method)
    prompt, pad = ids.shape[1] - ANSWER, 5
    decoded = list(range(prompt, ids.shape[1]))
    alone = [step_by_step(model, row[None], decoded) for row in ids]
    together = step_by_step(model, ids, decoded)
    assert alike(torch.cat(alone), together)
    padded = torch.nn.functional.pad(ids, (pad, 0))
    mask = (torch.arange(padded.shape[1]) >= pad).long().expand_as(padded)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, found = None, []
    for first, stop in [(0, prompt + pad), *((at + pad, at + pad + 1) for at in decoded)]:
        output = model(
            padded[:, first:stop], attention_mask=mask[:, :stop], position_ids=positions[:, first:stop],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache = output.past_key_values
        found.append(output.logits)
    assert alike(torch.cat(found, 1)[:, pad:], together)


def test_generate_writes_the_same_with_a_static_cache_and_with_parts_of_a_prompt(model, method):
    ids = extended_at_its_end(model, method)[:, :-8]
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    written = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, cache_implementation="static"), written)
    if FACTOR[method] > 2:
        part = 2 * longwave.extension(model).attention.prefill_chunk
        assert torch.equal(model.generate(ids, **settings, prefill_chunk_size=max(part, 4)), written)


def test_a_short_row_of_a_batch_runs_the_plain_model(model, method):
    ids = text_ids(1, L - 7)
    plain = model(ids).logits
    long = extended_at_its_end(model, method)
    longwave.set_policy(model, "fit")
    pad = long.shape[1] - ids.shape[1]
    both = torch.cat([long[:1], torch.nn.functional.pad(ids, (pad, 0))])
    mask = torch.ones_like(both)
    mask[1, :pad] = 0
    found = model(both, attention_mask=mask).logits
    assert alike(found[1:, pad:], plain)
    assert alike(found[:1], model(long[:1]).logits)
