"""Every way to decode, on five families: cached and uncached agree, in tokens or in logits.

docs/generation.md has the table that these tests stand behind.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import LENGTH, VOCABULARY, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

import longwave
from longwave.extensions.handle import extension

FAMILIES = ("llama", "gpt_neox", "qwen2", "mistral", "gemma2")
# Absolute differences of logits of 1 to 3 in size.
DTYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 0.02)}
PROMPT, NEW = 50, 30  # through L = 64, where t starts to move and `grow` reads again
FACTOR = 3.0  # of policy `fixed`
FREE: dict[str, Any] = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def extended(
    family: str, dtype: torch.dtype = torch.float32, method: str = "ntk", window: int | None = None
) -> PreTrainedModel:
    """Weights large enough for logits to differ clearly; the families' sliding windows where `window` is given."""
    model = tiny_model(family)
    model.config.sliding_window = window or (None if family == "mistral" else 4096)
    for layer in model.modules():
        if getattr(layer, "sliding_window", None) is not None:
            layer.sliding_window = model.config.sliding_window
    for parameter in model.parameters():
        parameter.data *= 2
    model.generation_config.cache_implementation = None
    return longwave.extend(model, method, max_factor=4, log_n=1.0, original_length=LENGTH).to(dtype)


def prompt(rows: int = 1, length: int = PROMPT) -> Tensor:
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def teacher_forced(model: PreTrainedModel, sequences: Tensor, policy: str) -> Tensor:
    """Logits of the generated part, each from a full forward at the t that the policy gives there."""
    rotary = longwave.rotaries(model)[0]
    found = []
    with torch.no_grad():
        for end in range(PROMPT, PROMPT + NEW):
            t = {"grow": rotary.factor_for(end), "fit": (PROMPT + NEW) / LENGTH, "fixed": FACTOR}[policy]
            with extension(model).dial.held():
                longwave.set_policy(model, "fixed", t)
                found.append(model(sequences[:, :end], use_cache=False).logits[:, -1])
    return torch.stack(found, dim=1).float()


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20},
    "chunked": {"prefill_chunk_size": 16},
}
CELLS = [
    *itertools.product(MODES, ("fit", "grow"), (None, "static"), ("float32",)),
    *itertools.product(("greedy",), ("fit", "grow"), (None, "static"), ("bfloat16",)),
    *itertools.product(("greedy",), ("fixed",), (None, "static"), ("float32",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "policy", "cache", "dtype"), CELLS)
def test_scores_are_those_of_full_forwards(family: str, mode: str, policy: str, cache: str | None, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype]
    model = extended(family, kind)
    longwave.set_policy(model, policy, FACTOR if policy == "fixed" else None)
    torch.manual_seed(1)
    options = {"do_sample": False, "cache_implementation": cache, **FREE, **MODES[mode]}
    result = model.generate(prompt(), output_logits=True, return_dict_in_generate=True, **options)
    ours = torch.stack(result.logits, dim=1).float()
    expected = teacher_forced(model, result.sequences, policy)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("windowed", ["mistral", "gemma2"])
@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_sliding_windows(windowed: str, policy: str, cache: str | None) -> None:
    """Caches that forget: all layers of Mistral, every other one of Gemma 2."""
    model = extended(windowed, window=16)
    longwave.set_policy(model, policy)
    options = {"do_sample": False, "cache_implementation": cache, **FREE}
    result = model.generate(prompt(), output_logits=True, return_dict_in_generate=True, **options)
    expected = teacher_forced(model, result.sequences, policy)
    torch.testing.assert_close(torch.stack(result.logits, dim=1), expected, atol=DTYPES["float32"][1], rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_beams_with_and_without_a_cache(family: str, policy: str, cache: str | None) -> None:
    model = extended(family)
    longwave.set_policy(model, policy)
    options = {**FREE, "do_sample": False, "num_beams": 3}
    ours = model.generate(prompt(), cache_implementation=cache, **options)
    assert torch.equal(ours, model.generate(prompt(), use_cache=False, **options))


def test_prompt_lookup_is_greedy(family: str) -> None:
    model, ids = extended(family), prompt().repeat(1, 2)[:, :90]
    options = {**FREE, "do_sample": False}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), expected)


def test_assisted_by_a_smaller_model_is_greedy(family: str) -> None:
    model, assistant = extended(family), extended(family)
    for parameter in assistant.parameters():  # a model of its own, which is often wrong
        parameter.data += 0.02 * torch.randn_like(parameter)
    options = {**FREE, "do_sample": False}
    expected = model.generate(prompt(), **options)
    assert torch.equal(model.generate(prompt(), assistant_model=assistant, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_eight_padded_rows_are_eight_single_runs(family: str, policy: str, cache: str | None) -> None:
    model = extended(family)
    longwave.set_policy(model, policy)
    rows = [prompt(length=length) for length in (20, 40, 50, 62, 64, 65, 80, 90)]
    width = rows[-1].shape[1]
    batch = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = (torch.arange(width) >= width - torch.tensor([[row.shape[1]] for row in rows])).long()
    options = {**FREE, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(batch, attention_mask=mask, cache_implementation=cache, **options)
    for index, row in enumerate(rows):
        alone = model.generate(row, **options)
        assert torch.equal(together.sequences[index, -NEW:], alone.sequences[0, -NEW:])
        a, b = (torch.stack(result.logits, dim=1) for result in (together, alone))
        torch.testing.assert_close(a[index], b[0], atol=DTYPES["float32"][1], rtol=0)


@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_a_streamer_sees_every_token(family: str, policy: str, cache: str | None) -> None:
    class Collect:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    model, seen = extended(family), Collect()
    longwave.set_policy(model, policy)
    result = model.generate(prompt(), streamer=seen, cache_implementation=cache, do_sample=False, **FREE)
    assert seen.tokens == [*result[0].tolist(), -1]
