"""Every protocol equals a computation that shares no code with it, and the loss by position adds up to the mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import longwave
from longwave.evaluation.windows import PROTOCOLS, WHOLE
from longwave.extensions.handle import rotaries

STRIDE, TARGETS, CHUNK = 32, 16, 60
DOCUMENTS = [0, 150, 420, 450, 800]  # of 150, 270, 30, 350 and 300 tokens


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (1100,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["ntk", "clex"])
def model(request: pytest.FixtureRequest, llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """Extended to 4 x 64, with weights so large that tokens far away matter, and a field that has left its start."""
    for parameter in llama.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    longwave.extend(llama, request.param, max_factor=4)
    for parameter in rotaries(llama)[0].trajectory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return llama


@torch.no_grad()
def independent(model: LlamaForCausalLM, tokens: Tensor, length: int, protocol: str) -> list[tuple[float, int]]:
    """(sum of -ln p, how many) of every window that fits: one plain forward for each."""
    spread = [256 + (len(tokens) - 256) * w // (COUNT - 1) - length for w in range(COUNT)]
    starts = {"same-targets": spread, "truncate": [150, 450, 800], "chunked-cache": range(0, 1101 - length, length)}
    found = []
    for start in starts.get(protocol, range(0, 1101 - length, STRIDE)):
        window = tokens[start : start + length]
        log_p = model(window[None]).logits[0].log_softmax(-1)
        losses = {place: -float(log_p[place - 1, window[place]]) for place in range(1, length)}
        last = {"same-targets": TARGETS, "stride": STRIDE if start else length}.get(protocol, length)
        scored = [losses[p] for p in losses if p >= length - last and (protocol != "chunked-cache" or p % CHUNK)]
        found.append((math.fsum(scored), len(scored)))
    return found


COUNT = (1100 - 256) // TARGETS + 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_to_an_independent_computation(model: LlamaForCausalLM, tokens: Tensor, protocol: str) -> None:
    result = longwave.perplexity(
        model, tokens, [64, 128, 256], protocol=protocol, windows=0, targets=TARGETS, stride=STRIDE, chunk=CHUNK,
        documents=DOCUMENTS, tokens_per_batch=600, block_elements=20_000,
    )  # fmt: skip
    for entry in result.lengths:
        expected = independent(model, tokens, entry.length, protocol)
        assert entry.factor == entry.length / 64
        assert entry.tokens == tuple(count for _, count in expected)
        assert entry.nll == pytest.approx([nll for nll, _ in expected], rel=1e-5)
        mean = sum(nll for nll, _ in expected) / sum(count for _, count in expected)
        assert entry.ppl == pytest.approx(math.exp(mean), rel=1e-5)


@pytest.mark.parametrize("protocol", WHOLE)
def test_loss_by_position(model: LlamaForCausalLM, tokens: Tensor, protocol: str) -> None:
    arguments = {"protocol": protocol, "windows": 3, "chunk": CHUNK, "documents": DOCUMENTS, "tokens_per_batch": 300}
    found = longwave.perplexity(model, tokens, [64, 250], by_position=7, **arguments)
    assert [entry.nll for entry in found.lengths] == [
        entry.nll for entry in longwave.perplexity(model, tokens, [64, 250], **arguments).lengths
    ]
    for entry in found.lengths:
        stretches = entry.by_position
        assert [stretch.start for stretch in stretches] == [entry.length * k // 7 for k in range(7)]
        assert [stretch.end for stretch in stretches] == [entry.length * k // 7 for k in range(1, 8)]
        assert sum(stretch.tokens for stretch in stretches) == sum(entry.tokens)
        total = sum(stretch.nll * stretch.tokens for stretch in stretches)
        assert total / sum(entry.tokens) == pytest.approx(entry.mean, rel=1e-9)
        assert entry.to_json()["by_position"][6] == vars(stretches[6])
    windows = [tokens[end - 250 : end] for end in found[250].ends]
    with torch.no_grad():
        log_p = [model(window[None]).logits[0].log_softmax(-1) for window in windows]
    third = [p for p in range(250 * 2 // 7, 250 * 3 // 7) if protocol != "chunked-cache" or p % CHUNK]
    expected = [-float(each[p - 1, window[p]]) for each, window in zip(log_p, windows, strict=True) for p in third]
    assert found[250].by_position[2].nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found[250].by_position[2].tokens == len(expected)


def test_no_loss_by_position_where_none_was_asked_for(model: LlamaForCausalLM, tokens: Tensor) -> None:
    found = longwave.perplexity(model, tokens, [64], protocol="overlap", windows=2)
    assert "by_position" not in found[64].to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"protocol": "same-targets"},
            "same-targets has no loss by position. Choose one of overlap, truncate, chunked",
        ),
        ({"protocol": "stride"}, "protocol stride has no loss by position"),
        ({"by_position": 33}, "by_position must be 0 to 32, half of the shortest length, got 33"),
        ({"by_position": -1}, "by_position must be 0 to 32, half of the shortest length, got -1"),
        ({"protocol": "truncate"}, r"needs to know where documents start. Pass documents=\[0, ...\]"),
    ],
)
def test_refused(model: LlamaForCausalLM, tokens: Tensor, changes: dict, message: str) -> None:
    arguments = {"protocol": "overlap", "by_position": 4, "targets": TARGETS, **changes}
    with pytest.raises(ValueError, match=message):
        longwave.perplexity(model, tokens, [64, 128], **arguments)


def test_windows_are_read_in_chunks_into_a_cache(model: LlamaForCausalLM, tokens: Tensor) -> None:
    """By default of the trained length, 64, where that is less than 4,096."""
    seen: list[tuple[int, int]] = []

    def note(_: object, __: object, kwargs: dict, output: object) -> None:
        seen.append((kwargs["input_ids"].shape[1], output.past_key_values.get_seq_length()))

    model.register_forward_hook(note, with_kwargs=True)
    found = longwave.perplexity(model, tokens, [200], protocol="chunked-cache", windows=1)
    assert seen == [(64, 64), (64, 128), (64, 192), (8, 200)]
    assert found[200].tokens == (63 * 3 + 7,)


def test_a_model_without_a_cache_is_refused(tokens: Tensor) -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel keeps no key/value cache"):
        longwave.perplexity(model, tokens, [64], protocol="chunked-cache", original_length=32, windows=1)
