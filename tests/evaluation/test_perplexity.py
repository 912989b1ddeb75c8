"""Perplexity equals what ten lines of plain code give, at the t of the whole window."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import longwave
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.losses import Perplexity
from longwave.extensions.caches import FILLED_AT
from longwave.extensions.handle import rotaries

STRIDE, TARGETS = 32, 16


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (900,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sharp(llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """Weights five times the initial ones: logits that depend on positions far away."""
    for parameter in llama.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return llama


def by_hand(model: LlamaForCausalLM, tokens: Tensor, length: int, protocol: str, ends: tuple[int, ...]) -> list[float]:
    sums = []
    for end in ends:
        window = tokens[None, end - length : end]
        with torch.no_grad():
            losses = cross_entropy(model(window).logits[0, :-1], window[0, 1:], reduction="none")
        new = {"same-targets": TARGETS, "overlap": length, "stride": length if end == length else STRIDE}[protocol]
        sums.append(float(losses[-new:].double().sum()))
    return sums


def measure(model: LlamaForCausalLM, tokens: Tensor, protocol: str) -> Perplexity:
    return longwave.perplexity(
        model, tokens, "1x,2x,4x,100", protocol=protocol, windows=6, targets=TARGETS, stride=STRIDE,
        tokens_per_batch=500, block_elements=20_000,
    )  # fmt: skip


@pytest.mark.parametrize("protocol", ["same-targets", "stride", "overlap"])
@pytest.mark.parametrize("method", ["none", "ntk", "yarn@ceiling"])
def test_defect_perplexity_chunked_cache(sharp: LlamaForCausalLM, tokens: Tensor, protocol: str, method: str) -> None:
    """The official evaluation read windows in 4,096-token chunks through a cache, each chunk at a t of its own.

    Ours is one full forward at the t of the full window: it equals the plain forward of the model, and
    differs from what chunks give.
    """
    longwave.extend(sharp, method, max_factor=4)
    found = measure(sharp, tokens, protocol)
    for entry in found.lengths:
        assert entry.nll == pytest.approx(by_hand(sharp, tokens, entry.length, protocol, entry.ends), rel=1e-5)
        expected = {"ntk": entry.length / 64, "none": entry.length / 64}.get(method, math.ceil(entry.length / 64))
        assert entry.factor == expected
    if method != "none":
        assert abs(chunked(sharp, tokens[:256]) - by_hand(sharp, tokens, 256, "overlap", (256,))[0]) > 0.1


def chunked(model: LlamaForCausalLM, window: Tensor) -> float:
    """The defect: 64-token chunks into one cache, each at the t of its own last position; refused unless forced."""
    cache, losses, (rotary,) = None, [], longwave.rotaries(model)
    with torch.no_grad():
        for start in range(0, len(window), 64):
            if start:
                with pytest.raises(ValueError, match="the cache was filled at t"):
                    model(window[None, start : start + 64], past_key_values=cache, use_cache=True)
                vars(cache).pop(FILLED_AT, None)
            longwave.set_policy(model, "fixed", rotary.factor_for(start + 64))
            output = model(window[None, start : start + 64], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            targets = window[start + 1 : start + 65]
            losses.append(cross_entropy(output.logits[0, : len(targets)], targets, reduction="sum"))
            longwave.set_policy(model, "fit")
    return float(torch.stack(losses).sum())


def test_statistics_of_a_result(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    result = measure(sharp, tokens, "same-targets")
    entry = result[128]
    assert entry.tokens == (TARGETS,) * 6
    assert entry.ppl == pytest.approx(math.exp(sum(entry.nll) / (6 * TARGETS)))
    assert entry.interval.low < entry.ppl < entry.interval.high
    assert [e.length for e in result.lengths] == [64, 128, 256, 100]
    assert result.original_length == 64
    with pytest.raises(KeyError, match="length 65 was not measured, only 64, 128, 256, 100"):
        result[65]


def test_the_model_is_left_as_it_was(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    longwave.extend(sharp.train(), "ntk", max_factor=4)
    longwave.set_policy(sharp, "fixed", 2.0)
    measure(sharp, tokens, "same-targets")
    assert sharp.training
    assert rotaries(sharp)[0].factor == 2.0


def test_dropout_is_off(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    expected = measure(sharp, tokens, "same-targets")
    sharp.config.attention_dropout = 0.5
    for layer in sharp.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert measure(sharp.train(), tokens, "same-targets") == expected


def test_batching_changes_nothing(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    one, many = (
        longwave.perplexity(sharp, tokens, [96], windows=7, targets=TARGETS, tokens_per_batch=size)[96].nll
        for size in (1, 10**6)
    )
    assert one == pytest.approx(many, rel=1e-6)


def test_progress_counts_the_tokens_read(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    seen: list[int] = []
    longwave.perplexity(sharp, tokens, [64, 128], windows=5, targets=TARGETS, progress=seen.append)
    assert sum(seen) == 5 * (64 + 128)


def test_beyond_the_maximum(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    longwave.extend(sharp, "ntk", max_factor=4)
    with pytest.raises(ValueError, match=r"length 320 is beyond the maximum of 256 tokens \(4 x 64\)"):
        longwave.perplexity(sharp, tokens, "1x,5x", targets=TARGETS)


def test_a_loss_that_is_no_number(sharp: LlamaForCausalLM, tokens: Tensor) -> None:
    sharp.lm_head.weight.data[3] = math.nan
    with pytest.raises(ValueError, match="the loss at length 64 is not a finite number"):
        longwave.perplexity(sharp, tokens, [64], targets=TARGETS, windows=2)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1x,2x,4096", [64, 128, 4096]), ("0.5x", [32]), (" 1x , 64,1.5x", [64, 96]), ([64, "2x"], [64, 128])],
)
def test_lengths(text: str | list, counts: list[int]) -> None:
    assert parse_lengths(text, 64) == counts


@pytest.mark.parametrize("text", ["", "2y", "x", "-1x", "0", "1.5", "infx", "nanx", "1e3"])
def test_bad_lengths(text: str) -> None:
    with pytest.raises(ValueError, match=r"bad length|no lengths"):
        parse_lengths(text, 64)


def test_real_checkpoint_collapses_unscaled_and_less_so_under_yarn(shared: Path) -> None:
    """babyllama_tok105 (a Llama trained by others on TinyStories, L = 256) between 1x and 2x."""
    folder = shared / "data" / "models" / "babyllama_tok105" / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = (shared / "data" / "models" / "tinystories_text" / "val_sample.txt").read_text("utf-8").replace("\n", " ")
    ids = AutoTokenizer.from_pretrained(folder)(text[:20_000], add_special_tokens=False)["input_ids"]
    tokens = torch.tensor(ids)
    unscaled = longwave.perplexity(model, tokens, "1x,2x", windows=12)
    with longwave.extended(model, "yarn", max_factor=2):
        yarn = longwave.perplexity(model, tokens, "1x,2x", windows=12)
    assert unscaled[256].ppl < 5
    assert unscaled[512].ppl > 10 * unscaled[256].ppl
    assert yarn[256].nll == unscaled[256].nll
    assert yarn[512].ppl < 2 * unscaled[256].ppl
