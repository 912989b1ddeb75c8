"""What selections and Ms-PoE cannot do is refused in one line, which says what to do instead."""

from __future__ import annotations

import re

import pytest
import torch
from selection_models import FACTOR, peaked, text_ids
from transformers import Cache
from transformers.cache_utils import DynamicLayer, Fp8QuantizedLayer

import longwave
from longwave.attention import ATTENTIONS, get_attention
from longwave.extensions.conversation import Conversation

METHODS = list(FACTOR)


@pytest.fixture
def model():
    with torch.no_grad():
        yield peaked("llama")
    longwave.restore(peaked("llama"))


@pytest.fixture(params=METHODS)
def selecting(request, model):
    longwave.extend(model, request.param, max_factor=FACTOR[request.param])
    longwave.set_policy(model, "fixed", FACTOR[request.param])
    return model


def refused(words: str):
    """One line of at most 250 letters that begins or goes on with these words."""

    class Refused:
        def __enter__(self):
            self.raises = pytest.raises(ValueError, match=re.escape(words))
            self.caught = self.raises.__enter__()

        def __exit__(self, *error):
            found = self.raises.__exit__(*error)
            assert "\n" not in str(self.caught.value) and len(str(self.caught.value)) <= 250
            return found

    return Refused()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (
            "token-select",
            {"window": 8, "chunk": 9},
            "chunk of token-select must be at most its window of 8 tokens, got 9",
        ),
        ("infllm", {"window": 8, "chunk": 9}, "chunk of infllm must be at most its window of 8 tokens, got 9"),
        ("token-select", {"top_k": 64}, "token-select has distances of up to 84 at 4 x 32 tokens, more than the model"),
        ("infllm", {"window": 64}, "infllm has distances of up to 64 at 4 x 32 tokens, more than the model knows"),
        ("ms-poe", {}, "ms-poe has distances of up to 107 at 4 x 32 tokens, more than the model knows"),
        ("none+quest", {}, "quest has distances of up to 128 at 4 x 32 tokens, more than the model knows"),
        ("quest", {"page": 8, "budget": 7}, "the budget of quest must hold a page of 8 tokens, got 7"),
        ("ms-poe", {"ratio_min": 1.5, "ratio_max": 1.2}, "ratio max of ms-poe must be at least ratio min 1.5, got 1.2"),
        ("token-select", {"vote": "sum"}, "vote of token-select must be one of soft, head, logit, got 'sum'"),
        ("token-select", {"top_k": -1}, "top k of token-select must be at least 0, got -1"),
        ("token-select+quest", {}, "names two attention methods"),
        ("token-select", {"log_n": True}, "token-select chooses its keys by unscaled queries. Pass log_n=False."),
    ],
)
def test_options(model, method, options, words):
    plain = model(text_ids(1, 20)).logits
    with refused(words):
        longwave.extend(model, method, max_factor=4, **options)
    assert torch.equal(model(text_ids(1, 20)).logits, plain)


def test_more_distance_is_allowed_above_a_scaling_method(model):
    longwave.extend(model, "yarn+token-select", max_factor=4, top_k=64)
    assert longwave.extension(model).attention.factor(4.0) == 84 / 32


def test_gradients(selecting):
    with torch.enable_grad(), refused(f"{longwave.extension(selecting).attention.name} has no gradient"):
        selecting(text_ids(1, 36))


def test_padding_on_the_right(selecting):
    ids = text_ids(2, 36)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with refused("takes rows that are padded on the left alone, with positions 0, 1, 2, ...; row 1 is not"):
        selecting(ids, attention_mask=mask)


def test_padding_inside(selecting):
    ids = text_ids(1, 36)
    mask = torch.ones_like(ids)
    mask[0, 10:12] = 0
    with refused("takes rows that are padded on the left alone"):
        selecting(ids, attention_mask=mask)


def test_packed_rows(selecting):
    with refused("takes "):
        selecting(text_ids(1, 36), position_ids=torch.cat([torch.arange(20), torch.arange(16)])[None])


def test_positions_that_skip(selecting):
    positions = torch.cat([torch.arange(20), torch.arange(21, 37)])[None]
    with refused("takes rows that are padded on the left alone, with positions 0, 1, 2, ..."):
        selecting(text_ids(1, 36), position_ids=positions)


def test_masks_of_four_axes(selecting):
    mask = torch.ones(1, 1, 36, 36).tril().bool()
    with refused("needs an attention mask of two axes"):
        selecting(text_ids(1, 36), attention_mask=mask)


class Halved(DynamicLayer):
    """A layer that keeps its keys in another form."""


@pytest.mark.parametrize("kind", [Halved, Fp8QuantizedLayer])
def test_caches_that_keep_keys_in_another_form(selecting, kind):
    cache = Cache(layers=[kind() for _ in range(2)])
    name = longwave.extension(selecting).attention.name
    with refused(f"{name} needs a dynamic or a static cache, got layers of type {kind.__name__}"):
        selecting(text_ids(1, 36), past_key_values=cache)


def test_parts_of_a_prompt_that_cut_its_chunks(selecting):
    method = longwave.extension(selecting).attention
    if method.prefill_chunk == 1:
        pytest.skip(f"{method.name} has no chunks")
    ids, part = text_ids(1, 35), method.prefill_chunk - 1
    message = f"prefill_chunk_size must be a multiple of {method.prefill_chunk}, {method.name}'s chunk, got {part}"
    if method.name == "ms-poe":
        part, message = 20, "ms-poe reads a prompt in one go. Leave prefill_chunk_size out."
    settings = {"max_new_tokens": 2, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with refused(message):
        selecting.generate(ids, **settings, prefill_chunk_size=part)


def test_parts_of_padded_prompts(model):
    longwave.extend(model, "token-select", max_factor=4)
    ids = text_ids(2, 60)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with refused("token-select reads prompts of several lengths in one go"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, prefill_chunk_size=16)


def test_parts_of_a_text_that_is_read_again_where_it_grows(model):
    longwave.extend(model, "token-select", max_factor=8)
    ids = text_ids(1, 30)
    settings = {"max_new_tokens": 60, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    model.generate(ids, **settings, prefill_chunk_size=33)  # the prompt is read at once, and nothing else
    longwave.set_policy(model, "grow")
    with refused("prefill_chunk_size must be a multiple of 8, token-select's chunk, got 33"):
        model.generate(ids, **settings, prefill_chunk_size=33)


def test_speculation(selecting):
    ids = text_ids(1, 34)
    name = longwave.extension(selecting).attention.name
    with refused(f"{name} cannot decode speculatively"):
        selecting.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("method", ["infllm", "ms-poe"])
def test_a_cache_that_another_forward_has_filled(model, method):
    ids = text_ids(1, 36)
    cache = model(ids[:, :35], use_cache=True).past_key_values
    longwave.extend(model, method, max_factor=FACTOR[method])
    longwave.set_policy(model, "fixed", FACTOR[method])
    with refused(f"{method} goes on only with a cache that it has filled"):
        model(ids[:, 35:], past_key_values=cache)


@pytest.mark.parametrize("method", METHODS)
def test_a_chat_goes_on_turn_by_turn(llama, tokenizer, method):
    longwave.extend(llama, method, max_factor=1.2 if method == "ms-poe" else 4, original_length=64)
    chat = Conversation(llama, tokenizer)
    for _ in range(2):
        assert isinstance(chat.say("abcdefgh", max_new_tokens=4), str)


def test_methods_say_that_prompts_are_read_otherwise_than_they_are_decoded():
    differs = {name for name, kind in ATTENTIONS.items() if kind.prefill_differs}
    assert differs == set(METHODS)
    bands = get_attention("two-band").create(original_length=64, max_factor=2)
    assert bands.prefill_chunk == 1
