"""Every way to decode, on five families: cached and uncached agree, in tokens or in logits.

docs/generation.md has the table that these tests stand behind.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LENGTH, VOCABULARY, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

import longwave

FAMILIES = ("llama", "gpt_neox", "qwen2", "mistral", "gemma2")
DTYPES = {"float32": (torch.float32, 1e-4), "bfloat16": (torch.bfloat16, 6e-2)}
PROMPT, NEW = 50, 30  # through L = 64, where t starts to move and `grow` reads again
FREE: dict[str, Any] = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def extended(family: str, dtype: torch.dtype = torch.float32, method: str = "ntk") -> PreTrainedModel:
    """Weights large enough for logits to differ clearly, and no sliding window shorter than the test."""
    model = tiny_model(family)
    model.config.sliding_window = None if family == "mistral" else 4096
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
            t = rotary.factor_for(end) if policy == "grow" else rotary.factor_for(PROMPT + NEW)
            longwave.set_length(model, "fixed", t)
            found.append(model(sequences[:, :end], use_cache=False).logits[:, -1])
            longwave.set_length(model, policy)
    return torch.stack(found, dim=1).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"cache_implementation": "static"},
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"prefill_chunk_size": 16},
    ],
    ids=["greedy", "static", "sampling", "chunked"],
)
def test_scores_are_those_of_full_forwards(family: str, dtype: str, policy: str, mode: dict[str, Any]) -> None:
    kind, tolerance = DTYPES[dtype]
    model = extended(family, kind)
    longwave.set_length(model, policy)
    torch.manual_seed(1)
    options = {"do_sample": False, **FREE, **mode}
    result = model.generate(prompt(), output_logits=True, return_dict_in_generate=True, **options)
    ours = torch.stack(result.logits, dim=1).float()
    expected = teacher_forced(model, result.sequences, policy)
    torch.testing.assert_close(ours, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("policy", ["fit", "grow"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_beams_with_and_without_a_cache(family: str, policy: str, cache: str | None) -> None:
    model = extended(family)
    longwave.set_length(model, policy)
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


@pytest.mark.parametrize("policy", ["fit", "grow"])
def test_a_padded_batch_is_its_rows(family: str, policy: str) -> None:
    model = extended(family)
    longwave.set_length(model, policy)
    rows = [prompt(length=length) for length in (20, 50, 62, 90)]
    width = rows[-1].shape[1]
    batch = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = (torch.arange(width) >= width - torch.tensor([[row.shape[1]] for row in rows])).long()
    options = {**FREE, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(batch, attention_mask=mask, **options)
    for index, row in enumerate(rows):
        alone = model.generate(row, **options)
        a, b = (torch.stack(result.logits, dim=1) for result in (together, alone))
        torch.testing.assert_close(a[index], b[0], atol=1e-4 * float(b.abs().max()), rtol=0)


def test_a_streamer_sees_every_token(family: str) -> None:
    class Collect:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    model, seen = extended(family), Collect()
    longwave.set_length(model, "grow")
    result = model.generate(prompt(), streamer=seen, do_sample=False, **FREE)
    assert seen.tokens == [*result[0].tolist(), -1]
