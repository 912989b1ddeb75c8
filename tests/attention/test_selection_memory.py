"""What a cache remembers for a selection follows its keys: reordered, repeated, cut, emptied, copied."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from selection_models import FACTOR, L, alike, peaked, text_ids

import longwave
from longwave.extensions.memory import Room, SelectingLayer

PROMPT, STEPS = 60, 6
OPTIONS = {"token-select": {"sinks": 2, "window": 8, "top_k": 6, "threshold": -1.0}}  # choices that serve a while
RATIOS = {"ms-poe": {"ratio_min": 3.0, "ratio_max": 4.0}}  # so that it reaches as far as the others


@pytest.fixture(params=list(FACTOR))
def model(request):
    method = request.param
    longwave.extend(peaked("llama"), method, max_factor=3, **(OPTIONS | RATIOS).get(method, {}))
    longwave.set_policy(peaked("llama"), "fixed", 3)
    with torch.no_grad():
        yield peaked("llama")
    longwave.restore(peaked("llama"))


def filled(model, ids, steps=STEPS):
    """A cache that has read the prompts and decoded some tokens."""
    cache = model(ids[:, :PROMPT], use_cache=True).past_key_values
    if steps:
        goes_on(model, ids, cache, PROMPT, steps)
    return cache


def goes_on(model, ids, cache, start, steps=STEPS):
    return torch.cat([model(ids[:, p : p + 1], past_key_values=cache).logits for p in range(start, start + steps)], 1)


@pytest.mark.parametrize(
    ("change", "order"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "select by mask", "repeat"],
)
def test_rows_that_move_take_their_memory_along(model, change, order):
    ids = text_ids(3, PROMPT + 2 * STEPS)
    cache = filled(model, ids)
    expected = goes_on(model, ids, copy.deepcopy(cache), PROMPT + STEPS)
    change(cache)
    assert alike(goes_on(model, ids[order], cache, PROMPT + STEPS), expected[order])


def test_a_cache_that_is_cut_goes_on_as_if_the_tokens_had_not_been(model):
    ids = text_ids(2, PROMPT + STEPS)
    cache = filled(model, ids)
    if not cache.layers[0].is_croppable:
        before = cache.get_seq_length()
        with pytest.raises(
            ValueError, match=r"^infllm cannot take tokens off a cache\. Pass the whole text with a new"
        ):
            cache.crop(-STEPS)
        assert cache.get_seq_length() == before
        return
    cache.crop(-STEPS)
    expected = goes_on(model, ids, filled(model, ids, 0), PROMPT)
    assert alike(goes_on(model, ids, cache, PROMPT), expected)


def test_an_emptied_cache_is_a_new_one(model):
    ids, other = text_ids(4, PROMPT + STEPS).split(2)
    cache = filled(model, ids)
    cache.reset()
    again = model(other[:, :PROMPT], past_key_values=cache).logits
    assert alike(again, model(other[:, :PROMPT]).logits)
    fresh = filled(model, other, 0)
    assert alike(goes_on(model, other, cache, PROMPT), goes_on(model, other, fresh, PROMPT))


def test_copies_of_a_cache_go_on_apart(model):
    ids = text_ids(2, PROMPT + 2 * STEPS)
    cache = filled(model, ids)
    deep, layers = copy.deepcopy(cache), [copy.copy(layer) for layer in cache.layers]
    expected = goes_on(model, ids, cache, PROMPT + STEPS)
    goes_on(model, ids.flip(1), deep, PROMPT + STEPS)
    shallow = copy.copy(deep)
    shallow.layers = layers
    assert alike(goes_on(model, ids, shallow, PROMPT + STEPS), expected)


def test_a_cache_that_was_changed_from_outside_is_refused(model):
    ids = text_ids(1, PROMPT + STEPS)
    cache = filled(model, ids, 1)
    layer = cache.layers[0]
    assert isinstance(layer, SelectingLayer)
    layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
    with pytest.raises(
        ValueError, match=r"the cache has 60 tokens, and [\w-]+ remembers 61: it was changed from outside"
    ):
        model(ids[:, PROMPT : PROMPT + 1], past_key_values=cache)


def test_beams_are_those_of_a_static_cache(model):
    ids = text_ids(2, PROMPT)
    settings = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    written = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, cache_implementation="static"), written)


def test_the_last_part_of_a_prompt_may_be_one_token(model):
    # It is read, not decoded: quest reads with all keys, and token-select keeps no choice of it.
    part = max(longwave.extension(model).attention.prefill_chunk, 8)
    ids = text_ids(1, min(6 * part, PROMPT) // part * part + 1)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    whole = torch.stack(model.generate(ids, **settings).logits)
    assert alike(torch.stack(model.generate(ids, **settings, prefill_chunk_size=part).logits), whole)


def test_grow_reads_the_text_again_where_it_crosses_L(model):
    ids = text_ids(1, L - 3)
    longwave.set_policy(model, "grow")
    written = model.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    longwave.set_policy(model, "fit")
    for length in (L - 3, L - 2, L - 1, L):
        assert model(written[:, :length]).logits[0, -1].argmax() == written[0, length]
    longwave.set_policy(model, "fixed", 2)
    cache = model(written[:, : L + 1], use_cache=True).past_key_values
    for length in range(L + 1, L + 4):
        found = model(written[:, length : length + 1], past_key_values=cache).logits[0, -1].argmax()
        assert found == written[0, length + 1]


def test_frozen_weights_may_run_with_gradients_switched_on(model):
    ids = text_ids(1, PROMPT + STEPS)
    expected = goes_on(model, ids, filled(model, ids, 0), PROMPT)
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            assert alike(goes_on(model, ids, filled(model, ids, 0), PROMPT), expected)
    finally:
        model.requires_grad_(True)


def test_a_model_keeps_no_cache_alive(model):
    ids = text_ids(1, PROMPT + 1)
    cache = filled(model, ids, 1)
    kept = weakref.ref(cache)
    del cache
    assert kept() is None


def test_room_grows_without_a_copy_and_never_into_what_others_hold():
    room, held = Room(), None
    for step in range(200):
        held = room.add(held, torch.full((2, 3, 1, 4), float(step)))
        if step == 100:
            cut, start = held[:, :, :50], held.data_ptr()
        if step == 101:
            assert held.data_ptr() == start
    assert torch.equal(held[0, 0, :, 0], torch.arange(200.0))
    other = Room().add(cut, torch.full((2, 3, 1, 4), -1.0))
    assert other.shape[2] == 51 and torch.equal(held[0, 0, :, 0], torch.arange(200.0))
    assert torch.equal(room.add(held[:1], torch.zeros(1, 3, 1, 4))[0, 0, :200, 0], torch.arange(200.0))


def test_a_cache_from_inference_mode_goes_on_without_it(model):
    ids = text_ids(1, PROMPT + 2 * STEPS)
    expected = goes_on(model, ids, filled(model, ids), PROMPT + STEPS)
    with torch.inference_mode():
        cache = filled(model, ids)
    assert alike(goes_on(model, ids, cache, PROMPT + STEPS), expected)
