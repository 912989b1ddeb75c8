"""The stock generate under an extension: one t per call, and therefore exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, DynamicCache, LlamaForCausalLM, StaticCache

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
    torch.testing.assert_close(torch.stack(result.logits, dim=1), whole, atol=1e-5, rtol=0)


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
    assert torch.equal(ours[:1, 20:], greedy_without_cache(model, short, 20, 90 / L))
    assert torch.equal(ours[1:], greedy_without_cache(model, long, 20, 110 / L))


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


@pytest.mark.parametrize("cache", [None, "static"])
def test_prompt_as_embeddings(model: LlamaForCausalLM, cache: str | None) -> None:
    ids = prompt()
    embeddings = model.get_input_embeddings()(ids)
    new = model.generate(inputs_embeds=embeddings, max_new_tokens=20, cache_implementation=cache, **GREEDY)
    assert torch.equal(torch.cat([ids, new], dim=1), greedy_without_cache(model, ids, 20, 110 / L))


def test_a_factor_for_each_row_does_not_fit_beams(model: LlamaForCausalLM) -> None:
    longwave.set_length(model, "fixed", torch.tensor([2.0, 3.0]))
    batch = prompt(rows=2)
    both = model.generate(batch, max_new_tokens=5, **GREEDY)
    longwave.set_length(model, "fixed", 3.0)
    assert torch.equal(both[1:], model.generate(batch[1:], max_new_tokens=5, **GREEDY))
    longwave.set_length(model, "fixed", torch.tensor([2.0, 3.0]))
    with pytest.raises(ValueError, match=r"factor has shape \(2,\) but the batch has 6 rows"):
        model.generate(batch, max_new_tokens=5, num_beams=3, **GREEDY)


@pytest.mark.filterwarnings("ignore:the model.s rotary frequencies are rounded")
def test_a_cast_model_keeps_precise_frequencies_after_a_short_text(llama: LlamaForCausalLM) -> None:
    """Within L the base's own frequencies serve, here rounded to bfloat16; beyond it ours, which are not."""
    longwave.extend(llama.to(torch.bfloat16), "ntk", max_factor=4)
    (rotary,) = longwave.rotaries(llama)
    expected = rotary.trajectory.inv_freq(100 / L).float()
    for length in (30, 90):
        llama.generate(prompt(length=length), max_new_tokens=10, **GREEDY)
    assert torch.equal(rotary._steady[0], expected)


def pad_left(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of one-row prompts and its mask."""
    width = max(row.shape[1] for row in rows)
    batch = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    counts = torch.tensor([[row.shape[1]] for row in rows])
    return batch, (torch.arange(width) >= width - counts).long()


def greedy(model: LlamaForCausalLM, ids: Tensor, new: int) -> Tensor:
    """Without a cache, under the policy in force."""
    with torch.no_grad():
        for _ in range(new):
            token = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
    return ids


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("chunk", [None, 16])
def test_grow_is_exactly_greedy_decoding_without_a_cache(
    model: LlamaForCausalLM, cache: str | None, chunk: int | None
) -> None:
    """From 0.8 L to 3.8 L: through t = 1, 2 and 4."""
    longwave.set_length(model, "grow")
    ids = prompt(length=50)
    ours = model.generate(ids, max_new_tokens=190, cache_implementation=cache, prefill_chunk_size=chunk, **GREEDY)
    assert torch.equal(ours, greedy(model, ids, 190))
    assert longwave.rotaries(model)[0].factor is None
    longwave.set_length(model, "fit")
    assert not torch.equal(ours, model.generate(ids, max_new_tokens=190, **GREEDY))  # the policies do differ


def test_grow_computes_the_cache_again_only_when_t_doubles(model: LlamaForCausalLM) -> None:
    longwave.set_length(model, "grow")
    (rotary,) = longwave.rotaries(model)
    steps, forward = [], rotary.forward

    def counted(x: Tensor, position_ids: Tensor) -> Any:
        steps.append((position_ids.shape[1], rotary.factor))
        return forward(x, position_ids)

    rotary.forward = counted
    model.generate(prompt(length=50), max_new_tokens=100, **GREEDY)
    assert [step for step in steps if step[0] > 1] == [(50, 1.0), (65, 2.0), (129, 4.0)]
    assert len(steps) == 100


def test_a_batch_is_its_rows_alone(model: LlamaForCausalLM) -> None:
    rows = [prompt(length=length) for length in (20, 64, 65, 90, 100, 128, 150, 200)]
    batch, mask = pad_left(rows)
    for policy in ("fit", "grow"):
        longwave.set_length(model, policy)
        together = model.generate(
            batch, attention_mask=mask, max_new_tokens=40, output_logits=True, return_dict_in_generate=True, **GREEDY
        )
        for index, row in enumerate(rows):
            alone = model.generate(row, max_new_tokens=40, output_logits=True, return_dict_in_generate=True, **GREEDY)
            assert torch.equal(together.sequences[index, -40:], alone.sequences[0, -40:])
            for a, b in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(a[index], b[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row_of_a_forward(model: LlamaForCausalLM, side: str) -> None:
    """Neither t nor log-n may see the padding, or the length of the neighbours."""
    rows = [prompt(length=length) for length in (30, 90, 200)]
    batch, mask = pad_left(rows)
    if side == "right":
        batch = torch.cat([torch.nn.functional.pad(row, (0, 200 - row.shape[1])) for row in rows])
        mask = mask.flip(1)
    with torch.no_grad():
        together = model(batch, attention_mask=mask).logits
        for index, row in enumerate(rows):
            torch.testing.assert_close(together[index][mask[index].bool()], model(row).logits[0], atol=1e-5, rtol=0)


def test_packed_sequences_are_as_if_alone(model: LlamaForCausalLM) -> None:
    """Sequences packed into a row, told apart by their positions, have a t each."""
    rows = [prompt(length=length) for length in (30, 90, 100)]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.no_grad():
        packed = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False).logits[0]
        alone = torch.cat([model(row, use_cache=False).logits[0] for row in rows])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_chat_goes_on_with_its_cache(model: LlamaForCausalLM, policy: str, kind: type[Cache]) -> None:
    """Turns of a conversation on one cache equal the same turns without: where t moved on it is filled again."""
    longwave.set_length(model, policy)
    room = {"max_cache_len": 200} if kind is StaticCache else {}
    cache, text = kind(config=model.config, **room), prompt(length=40)
    for _ in range(4):
        expected = model.generate(text, max_new_tokens=20, **GREEDY)
        ours = model.generate(text, max_new_tokens=20, past_key_values=cache, **GREEDY)
        assert torch.equal(ours, expected)
        text = torch.cat([ours, prompt(length=10)], dim=1)
    assert cache.get_seq_length() > 128


def test_a_cache_of_another_t_is_refused(model: LlamaForCausalLM) -> None:
    ids = prompt(length=90)
    result = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True, **GREEDY)
    with pytest.raises(ValueError, match=r"cache was filled at t = 1\.48.*Pass the whole text as input_ids"):
        model.generate(
            prompt(length=3), attention_mask=torch.ones(1, 97), past_key_values=result.past_key_values,
            max_new_tokens=5, **GREEDY,
        )  # fmt: skip
    with torch.no_grad():
        filled = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"filled at t = 1\.40625, but 91 tokens run at t = 1\.42188"):
            model(ids[:, :1], past_key_values=filled)
        longwave.set_length(model, "fixed", 90 / L)
        model(ids[:, :1], past_key_values=filled)


def test_grow_refuses_what_it_cannot_read_again(model: LlamaForCausalLM) -> None:
    longwave.set_length(model, "grow")
    embeddings = model.get_input_embeddings()(prompt())
    with pytest.raises(ValueError, match="needs the prompt as input_ids"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=5, **GREEDY)
    with pytest.raises(ValueError, match="cannot decode speculatively"):
        model.generate(prompt(), max_new_tokens=5, prompt_lookup_num_tokens=3, **GREEDY)
    assistant = longwave.restore(copy.deepcopy(model))
    with pytest.raises(ValueError, match="cannot decode speculatively"):
        model.generate(prompt(), max_new_tokens=5, assistant_model=assistant, **GREEDY)


@pytest.mark.parametrize("policy", ["fit", "grow"])
def test_beams_of_padded_rows(model: LlamaForCausalLM, policy: str) -> None:
    rows = [prompt(length=60), prompt(length=100)]
    batch, mask = pad_left(rows)
    longwave.set_length(model, policy)
    together = model.generate(batch, attention_mask=mask, max_new_tokens=10, num_beams=3, **GREEDY)
    for index, row in enumerate(rows):
        alone = model.generate(row, max_new_tokens=10, num_beams=3, **GREEDY)
        assert torch.equal(together[index, -10:], alone[0, -10:])


def test_compiled_decode_is_one_graph_for_every_t(model: LlamaForCausalLM) -> None:
    """As for the stock model: a step of a static cache is traced once, though t differs from call to call."""
    from torch._dynamo.testing import CompileCounter

    def decode(call: Any, factor: float) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=200)
        found = []
        (rotary,) = longwave.rotaries(model)
        with torch.no_grad():
            longwave.set_length(model, "fixed", factor)
            rotary.start_generating([150], 0)
            model(ids, past_key_values=cache)
            for step in range(120, 125):
                found.append(call(ids[:, :1], past_key_values=cache, position_ids=torch.tensor([[step]])).logits)
            rotary.generating = False
        return torch.cat(found)

    ids, counter = prompt(length=120), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    try:
        for factor in (2.5, 3.0, 3.5):
            torch.testing.assert_close(decode(compiled, factor), decode(model, factor), atol=1e-5, rtol=1e-5)
        assert counter.frame_count == 1
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_waits_for_the_device_no_more_often_than_the_stock_one(model: LlamaForCausalLM, rows: int) -> None:
    """Per step of `generate`, in all layers; with two rows of a t each, too."""
    batch, mask = pad_left([prompt(length=90), prompt(length=70)][:rows])

    def waits(new: int) -> int:
        with Waits() as mode:
            model.generate(batch, attention_mask=mask, max_new_tokens=new, **GREEDY)
        return mode.count

    ours = waits(20) - waits(10)
    longwave.restore(model)
    assert ours == waits(20) - waits(10)
