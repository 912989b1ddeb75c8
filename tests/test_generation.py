"""The stock generate under an extension: one t per call, and therefore exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

import longwave

L = 64
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def model(llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """Sharper than random weights, so that greedy choices are not ties, and t matters."""
    longwave.extend(llama, "clex", max_factor=4)
    for parameter in llama.parameters():
        parameter.data *= 2
    return llama


def prompt(rows: int = 1, length: int = 90) -> Tensor:
    return torch.randint(1, 256, (rows, length))


def greedy_without_cache(model: LlamaForCausalLM, ids: Tensor, new: int, factor: float) -> Tensor:
    longwave.set_length(model, "fixed", factor)
    with torch.no_grad():
        for _ in range(new):
            token = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
    longwave.set_length(model, "fit")
    return ids


@pytest.mark.parametrize("cache", [None, "static"])
def test_fit_is_exactly_greedy_decoding_at_the_final_length(model: LlamaForCausalLM, cache: str | None) -> None:
    ids = prompt()
    ours = model.generate(ids, max_new_tokens=30, cache_implementation=cache, **GREEDY)
    assert torch.equal(ours, greedy_without_cache(model, ids, 30, 120 / L))
    assert longwave.rotaries(model)[0].factor is None


def test_defect_incremental_decode_differs_from_the_full_forward(model: LlamaForCausalLM) -> None:
    """Every step's scores are those of one forward over the whole text, crossing L and several t on the way."""
    ids = prompt(length=50)
    result = model.generate(ids, max_new_tokens=110, output_logits=True, return_dict_in_generate=True, **GREEDY)
    longwave.set_length(model, "fixed", 160 / L)
    with torch.no_grad():
        whole = model(result.sequences, use_cache=False).logits[:, 49:-1]
    torch.testing.assert_close(torch.stack(result.logits, dim=1), whole, atol=1e-4, rtol=1e-4)


class Waits(TorchDispatchMode):
    """Counts the operations whose result Python reads: each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("factor", [None, 3.0])
def test_defect_all_keys_rotated_again_at_every_decode_step(model: LlamaForCausalLM, factor: float | None) -> None:
    """A step rotates the one new position, with frequencies that are there already."""
    (rotary,) = longwave.rotaries(model)
    if factor is not None:
        longwave.set_length(model, "fixed", factor)
    rotated, waits = [], []
    forward = rotary.forward

    def counted(x: Tensor, position_ids: Tensor) -> Any:
        with Waits() as mode:
            result = forward(x, position_ids)
        rotated.append(position_ids.tolist())
        waits.append(mode.count)
        return result

    rotary.forward = counted
    model.generate(prompt(), max_new_tokens=5, **GREEDY)
    assert rotated == [[list(range(90))], [[90]], [[91]], [[92]], [[93]]]
    assert waits[1:] == [0, 0, 0, 0]
    assert rotary.factor == factor and not rotary.generating


def test_weights_changed_between_generations_count(model: LlamaForCausalLM) -> None:
    (rotary,) = longwave.rotaries(model)
    ids = prompt()
    model.generate(ids, max_new_tokens=5, **GREEDY)
    for parameter in rotary.trajectory.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    result = model.generate(ids, max_new_tokens=20, output_logits=True, return_dict_in_generate=True, **GREEDY)
    assert torch.equal(result.sequences, greedy_without_cache(model, ids, 20, 110 / L))


def test_left_padded_rows_as_if_alone(model: LlamaForCausalLM) -> None:
    short, long = prompt(length=70), prompt(length=90)
    batch = torch.cat([torch.cat([torch.zeros(1, 20, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(batch)
    mask[0, :20] = 0
    ours = model.generate(batch, attention_mask=mask, max_new_tokens=20, **GREEDY)
    factor = 110 / L  # the longest row decides for both
    assert torch.equal(ours[:1, 20:], greedy_without_cache(model, short, 20, factor))
    assert torch.equal(ours[1:], greedy_without_cache(model, long, 20, factor))


def test_max_length_counts_the_prompt(model: LlamaForCausalLM) -> None:
    ids = prompt()
    ours = model.generate(ids, max_length=100, **GREEDY)
    assert torch.equal(ours, greedy_without_cache(model, ids, 10, 100 / L))


def test_beam_search_runs_at_one_t(model: LlamaForCausalLM) -> None:
    ids = prompt()
    with torch.no_grad():
        fit = model.generate(ids, max_new_tokens=10, num_beams=3, **GREEDY)
        longwave.set_length(model, "fixed", 100 / L)
        assert torch.equal(model.generate(ids, max_new_tokens=10, num_beams=3, **GREEDY), fit)


def test_within_l_it_is_the_plain_model(model: LlamaForCausalLM) -> None:
    ids = prompt(length=40)
    ours = model.generate(ids, max_new_tokens=20, **GREEDY)
    assert torch.equal(longwave.restore(model).generate(ids, max_new_tokens=20, **GREEDY), ours)


def test_a_fixed_factor_is_respected_and_kept(model: LlamaForCausalLM) -> None:
    ids = prompt()
    longwave.set_length(model, "fixed", 3.5)
    ours = model.generate(ids, max_new_tokens=20, **GREEDY)
    assert longwave.rotaries(model)[0].factor == 3.5
    assert torch.equal(ours, greedy_without_cache(model, ids, 20, 3.5))


def test_too_long_is_said_before_the_first_token(model: LlamaForCausalLM) -> None:
    for steering in (("fit",), ("fixed", 4.0)):
        longwave.set_length(model, *steering)
        with pytest.raises(ValueError, match="a sequence of 290 tokens is longer than 256"):
            model.generate(prompt(), max_new_tokens=200, **GREEDY)
        assert longwave.rotaries(model)[0].factor == (*steering, None)[1]


def test_ceiling_schedule(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "ntk@ceiling", max_factor=4)
    ids = prompt()
    ours = llama.generate(ids, max_new_tokens=20, **GREEDY)
    assert torch.equal(ours, greedy_without_cache(llama, ids, 20, 2.0))


def test_prompt_as_embeddings(model: LlamaForCausalLM) -> None:
    ids = prompt()
    embeddings = model.get_input_embeddings()(ids)
    new = model.generate(inputs_embeds=embeddings, max_new_tokens=20, **GREEDY)
    assert torch.equal(torch.cat([ids, new], dim=1), greedy_without_cache(model, ids, 20, 110 / L))
