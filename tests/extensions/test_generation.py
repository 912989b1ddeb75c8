"""The stock generate under an extension: one t per call, and therefore exact."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
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
    longwave.set_policy(model, "fixed", factor)
    with torch.no_grad():
        for _ in range(new):
            token = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
    longwave.set_policy(model, "fit")
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
    longwave.set_policy(model, "fixed", 160 / L)
    with torch.no_grad():
        whole = model(result.sequences, use_cache=False).logits[:, 49:-1]
    torch.testing.assert_close(torch.stack(result.logits, dim=1), whole, atol=1e-5, rtol=0)


READS = {"item", "tolist", "cpu", "numpy", "equal", "unique", "_unique2", "nonzero", "argwhere", "masked_select"}
READS |= {"__bool__", "__int__", "__float__", "__index__"}


class Waits(TorchFunctionMode):
    """Counts the operations whose result, or its size, Python reads: on a GPU each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        by_mask = name == "__getitem__" and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        self.count += name in READS or by_mask
        return function(*args, **(kwargs or {}))


def test_what_waits_is_seen() -> None:
    numbers = torch.arange(5)
    reads = (
        numbers.tolist, numbers.unique, numbers.cpu, numbers.nonzero, numbers[1].item, lambda: numbers[numbers > 2],
        lambda: bool(numbers[0] > 1), lambda: int(numbers[3]), lambda: torch.equal(numbers, numbers),
    )  # fmt: skip
    for read in reads:
        with Waits() as mode:
            read()
        assert mode.count == 1, read


@pytest.mark.parametrize("factor", [None, 3.0])
def test_defect_all_keys_rotated_again_at_every_decode_step(model: LlamaForCausalLM, factor: float | None) -> None:
    """A step rotates the one new position, with frequencies that are there already."""
    (rotary,) = longwave.rotaries(model)
    if factor is not None:
        longwave.set_policy(model, "fixed", factor)
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
        longwave.set_policy(model, "fixed", 100 / L)
        assert torch.equal(model.generate(ids, max_new_tokens=10, num_beams=3, **GREEDY), fit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_within_l_it_is_the_plain_model(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Bit for bit, but for decode steps of grouped queries: their kernel is another one, which rounds differently."""
    model.to(dtype)
    ids = prompt(length=40)
    options = {"max_new_tokens": 20, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    ours = model.generate(ids, **options)
    with torch.no_grad():
        forward = model(ids).logits
    plain = longwave.restore(model).generate(ids, **options)
    assert torch.equal(ours.sequences, plain.sequences)
    assert torch.equal(ours.logits[0], plain.logits[0])
    assert torch.equal(forward, model(ids).logits)
    torch.testing.assert_close(torch.cat(ours.logits), torch.cat(plain.logits), atol=1e-5, rtol=0)


def test_a_fixed_factor_is_respected_and_kept(model: LlamaForCausalLM) -> None:
    ids = prompt()
    longwave.set_policy(model, "fixed", 3.5)
    ours = model.generate(ids, max_new_tokens=20, **GREEDY)
    assert longwave.rotaries(model)[0].factor == 3.5
    assert torch.equal(ours, greedy_without_cache(model, ids, 20, 3.5))


def test_too_long_is_said_before_the_first_token(model: LlamaForCausalLM) -> None:
    for steering in (("fit",), ("fixed", 4.0)):
        longwave.set_policy(model, *steering)
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
    longwave.set_policy(model, "fixed", torch.tensor([2.0, 3.0]))
    batch = prompt(rows=2)
    both = model.generate(batch, max_new_tokens=5, **GREEDY)
    longwave.set_policy(model, "fixed", 3.0)
    assert torch.equal(both[1:], model.generate(batch[1:], max_new_tokens=5, **GREEDY))
    longwave.set_policy(model, "fixed", torch.tensor([2.0, 3.0]))
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
    torch.testing.assert_close(rotary._steady[0], expected, rtol=2e-7, atol=0)


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


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("chunk", [None, 16])
def test_grow_is_exactly_greedy_decoding_without_a_cache(
    model: LlamaForCausalLM, cache: str | None, chunk: int | None
) -> None:
    """From 0.8 L to 3.8 L: through t = 1, 2 and 4."""
    longwave.set_policy(model, "grow")
    ids = prompt(length=50)
    ours = model.generate(ids, max_new_tokens=190, cache_implementation=cache, prefill_chunk_size=chunk, **GREEDY)
    assert torch.equal(ours, greedy(model, ids, 190))
    assert longwave.rotaries(model)[0].factor is None
    longwave.set_policy(model, "fit")
    assert not torch.equal(ours, model.generate(ids, max_new_tokens=190, **GREEDY))  # the policies do differ


def test_grow_computes_the_cache_again_only_when_t_doubles(model: LlamaForCausalLM) -> None:
    longwave.set_policy(model, "grow")
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
        longwave.set_policy(model, policy)
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
    longwave.set_policy(model, policy)
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
        longwave.set_policy(model, "fixed", 90 / L)
        model(ids[:, :1], past_key_values=filled)


@pytest.mark.parametrize("cache", [None, "static"])
def test_grow_refuses_what_it_cannot_read_again(model: LlamaForCausalLM, cache: str | None) -> None:
    longwave.set_policy(model, "grow")
    options: dict[str, Any] = {"max_new_tokens": 5, "cache_implementation": cache, **GREEDY}
    embeddings = model.get_input_embeddings()(prompt())
    with pytest.raises(ValueError, match="needs the prompt as input_ids"):
        model.generate(inputs_embeds=embeddings, **options)
    with pytest.raises(ValueError, match="second cache of guidance_scale"):
        model.generate(prompt(), guidance_scale=2.0, negative_prompt_ids=prompt(length=5), **options)
    if cache is None:  # transformers refuses it for static ones
        with pytest.raises(ValueError, match="cannot decode speculatively"):
            model.generate(prompt(), prompt_lookup_num_tokens=3, **options)
        assistant = longwave.restore(copy.deepcopy(model))
        with pytest.raises(ValueError, match=r"cannot decode speculatively. Use set_policy\(model,"):
            model.generate(prompt(), assistant_model=assistant, **options)
        growing = copy.deepcopy(model)
        longwave.set_policy(model, "fit")
        with pytest.raises(ValueError, match=r"cannot decode speculatively. Use set_policy\(the assistant,"):
            model.generate(prompt(), assistant_model=growing, **options)


def test_grow_refuses_new_tokens_alone_where_it_may_grow(model: LlamaForCausalLM) -> None:
    longwave.set_policy(model, "grow")
    result = model.generate(prompt(length=40), max_new_tokens=5, return_dict_in_generate=True, **GREEDY)
    text = torch.cat([result.sequences, prompt(length=3)], dim=1)
    known = result.past_key_values.get_seq_length()
    cached = {"attention_mask": torch.ones(1, 48), "past_key_values": result.past_key_values}
    with pytest.raises(ValueError, match="which 40 new tokens may need: pass the whole text as input_ids"):
        model.generate(text[:, known:], max_new_tokens=40, **cached, **GREEDY)
    ours = model.generate(text[:, known:], max_new_tokens=10, **cached, **GREEDY)  # within L
    assert torch.equal(ours[:, -10:], greedy(model, text, 10)[:, -10:])


def test_a_right_padded_row_counts_its_tokens(model: LlamaForCausalLM) -> None:
    (rotary,) = longwave.rotaries(model)
    seen: list[Any] = []
    forward = rotary.forward
    rotary.forward = lambda *args, **kwargs: (seen.append(rotary.factor), forward(*args, **kwargs))[1]
    batch = torch.cat([prompt(), torch.zeros(1, 10, dtype=torch.long)], dim=1)
    model.generate(batch, attention_mask=(batch > 0).long(), max_new_tokens=10, **GREEDY)
    assert seen[0] == 100 / L


def test_two_threads_generate_one_after_the_other(model: LlamaForCausalLM) -> None:
    """t belongs to the model: the second call waits, and both are what they would be alone."""
    prompts = [prompt(length=90), prompt(length=20)]
    alone = [model.generate(ids, max_new_tokens=20, **GREEDY) for ids in prompts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda ids: model.generate(ids, max_new_tokens=20, **GREEDY), prompts * 3))
    assert all(torch.equal(a, b) for a, b in zip(together, alone * 3, strict=True))
    (rotary,) = longwave.rotaries(model)
    assert rotary.factor is None and not rotary.generating


def step(model: LlamaForCausalLM, ids: Tensor, cache: Cache, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, **options).logits[:, -1]


@pytest.mark.parametrize("policy", ["ntk@ceiling fit", "ntk grow"])
def test_a_decode_loop_of_padded_rows(llama: LlamaForCausalLM, policy: str) -> None:
    """Without position ids, as the stock model allows; refused from where one row would need another t."""
    longwave.extend(llama, policy.split()[0], max_factor=4)
    longwave.set_policy(llama, policy.split()[1])
    rows = [prompt(length=60), prompt(length=90)]
    batch, mask = pad_left(rows)
    cache = DynamicCache(config=llama.config)
    step(llama, batch, cache, attention_mask=mask)
    for _ in range(4):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        new = torch.tensor([[5], [6]])
        rows = [torch.cat([row, token[None]], dim=1) for row, token in zip(rows, new, strict=True)]
        ours = step(llama, new, cache, attention_mask=mask)
        for index, row in enumerate(rows):
            alone = step(llama, row, DynamicCache(config=llama.config))
            torch.testing.assert_close(ours[index], alone[0], atol=1e-5, rtol=0)
    positions = torch.tensor([[64], [94]])
    with pytest.raises(ValueError, match="filled at t = 1, 2, but 95 tokens run at t = 2"):
        step(llama, new, cache, attention_mask=torch.ones(2, 95), position_ids=positions)


def test_an_emptied_cache_is_a_new_one(llama: LlamaForCausalLM) -> None:
    model, text = longwave.extend(llama, "ntk", max_factor=4), prompt(length=70)
    for policy in ("fit", "grow"):
        longwave.set_policy(model, policy)
        cache = DynamicCache(config=model.config)
        model.generate(prompt(length=60), max_new_tokens=20, past_key_values=cache, **GREEDY)
        cache.reset()
        step(model, text[:, :30], cache)
        torch.testing.assert_close(step(model, text[:, 30:40], cache), step(model, text[:, :40], DynamicCache()))
        with pytest.raises(ValueError, match="the cache was filled at t = 1, but 70 tokens"):
            step(model, text[:, 40:], cache)


def test_a_cache_given_by_place_or_under_another_fixed_t(llama: LlamaForCausalLM) -> None:
    model, text = longwave.extend(llama, "ntk", max_factor=4), prompt(length=91)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(text[:, :90], None, None, cache)
        with pytest.raises(ValueError, match=r"filled at t = 1\.40625, but 91 tokens"):
            model(text[:, 90:], None, None, cache)
    longwave.set_policy(model, "fixed", 2.0)
    with pytest.raises(ValueError, match=r"filled at t = 1\.40625, but 91 tokens run at t = 2"):
        step(model, text[:, 90:], cache)


@pytest.mark.parametrize("policy", ["fit", "grow"])
def test_beams_of_padded_rows(model: LlamaForCausalLM, policy: str) -> None:
    rows = [prompt(length=60), prompt(length=100)]
    batch, mask = pad_left(rows)
    longwave.set_policy(model, policy)
    together = model.generate(batch, attention_mask=mask, max_new_tokens=10, num_beams=3, **GREEDY)
    for index, row in enumerate(rows):
        alone = model.generate(row, max_new_tokens=10, num_beams=3, **GREEDY)
        assert torch.equal(together[index, -10:], alone[0, -10:])


@pytest.mark.slow
def test_compiled_decode_is_one_graph_for_every_t(model: LlamaForCausalLM) -> None:
    """As for the stock model: a step of a static cache is traced once, though t differs from call to call."""
    from torch._dynamo.testing import CompileCounter

    def decode(call: Any, factor: float | Tensor) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=200)
        longwave.set_policy(model, "fixed", factor)
        with torch.no_grad():
            model(ids, past_key_values=cache)
            steps = (torch.full((2, 1), step) for step in range(120, 125))
            return torch.cat([call(ids[:, :1], past_key_values=cache, position_ids=step).logits for step in steps])

    ids, counter = prompt(rows=2, length=120), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    rows = torch.tensor([2.0, 3.0])
    try:
        for factor in (2.5, 3.0, 3.5, rows):
            torch.testing.assert_close(decode(compiled, factor), decode(model, factor), atol=1e-5, rtol=1e-5)
            assert counter.frame_count == (1 if factor is not rows else 2)
        for parameter in longwave.rotaries(model)[0].trajectory.parameters():
            parameter.data += 0.5
        model.eval()  # solves for the new weights
        torch.testing.assert_close(decode(compiled, 3.0), decode(model, 3.0), atol=1e-5, rtol=1e-5)
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

    waits(1)  # from the second call on the field's parameters are compared, once a call
    ours = waits(20) - waits(10)
    longwave.restore(model)
    assert ours == waits(20) - waits(10)
