"""What selections compute in one go is what the plain way over bands and masks gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longwave.attention.edges import before
from longwave.attention.engine import merge
from longwave.attention.infllm import Near
from longwave.attention.kernels import with_lse
from longwave.attention.layout import Layout
from longwave.attention.placement import place
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, gather, list_part, near_pairs, near_part
from longwave.attention.spectrum import Spectrum
from longwave.attention.streaming import StreamingLLM
from longwave.attention.token_select import TokenSelect

LENGTHS = {"original_length": 48, "max_factor": 4}
THETA = 1.0 / 100 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)


def row(tokens: int, seed: int = 0) -> Row:
    make = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, tokens, 16, generator=make, dtype=torch.float64) for heads in (4, 2, 2))
    return Row(q, k, v, Layout(), Spectrum(THETA, THETA, 1.2), 0.25)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_triangle_of_keys_is_seen(gradients):
    of = row(9)
    with torch.set_grad_enabled(gradients):
        output, lse = before(of.q, of.k, of.v, of.scale)
        expected, sums = with_lse(of.q, of.k, of.v, torch.ones(9, 9).tril().bool()[None, None], of.scale)
    assert torch.allclose(output, expected, atol=1e-12) and torch.allclose(lse.double(), sums.double(), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("first", "stop", "hit"), [(72, 84, False), (80, 81, False), (80, 81, True)])
def test_a_choice_in_one_call_is_that_of_list_and_near_band(first, stop, hit):
    method, whole, memory = TokenSelect.create(**LENGTHS, sinks=4, window=12, top_k=8, threshold=-1.0), row(100), None
    if hit:
        for p in range(first - 4, first):
            _, memory = method.choose(replace(whole.part(p, p + 1), decoding=True), memory)
    chunk = replace(whole.part(first, stop), decoding=stop - first == 1)
    choice, after = method.choose(chunk, memory)
    assert choice.every is not None and (memory is not None and after is memory) == hit
    found, _ = method.see(chunk, choice, after)
    apart = replace(choice, every=None, held=None)
    expected = merge([near_part(chunk, apart), list_part(chunk, apart)])
    assert torch.allclose(found, expected, atol=1e-12)


@torch.no_grad()
def test_rows_that_share_a_choice_go_on_apart():
    """As beams do: each has its own tokens after the choice."""
    method = TokenSelect.create(**LENGTHS, sinks=4, window=12, top_k=8, threshold=-1.0)
    one, other = row(100), row(100, seed=1)
    for x, y in ((one.k, other.k), (one.v, other.v)):
        y[:, :, :81] = x[:, :, :81]
    _, shared = method.attend(replace(one.part(80, 81), decoding=True), None)
    alone = [method.attend(replace(one.part(p, p + 1), decoding=True), shared)[0] for p in (81, 82)]
    mixed = []
    for p in (81, 82):
        mixed.append(method.attend(replace(one.part(p, p + 1), decoding=True), shared)[0])
        method.attend(replace(other.part(p, p + 1), decoding=True), shared)
    assert all(torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("first", "stop"), [(0, 8), (6, 14), (40, 52), (40, 41)])
def test_attention_to_the_near_band_and_what_its_keys_get(first, stop):
    chunk, window = row(60).part(first, stop), 12
    near = (chunk.positions - window + 1).clamp(min=0)
    q, k, mask = near_pairs(chunk, near)
    found = Near.of(chunk, int(near[0]), window)
    expected, lse = near_part(chunk, Choice(near))
    assert torch.allclose(found.part[0], expected, atol=1e-12)
    assert torch.allclose(found.part[1], lse.double(), atol=1e-6)
    total = found.part[1] + 0.7
    logits = (q @ k.repeat_interleave(2, 1).mT) * chunk.scale
    weights = (logits - total[..., None]).exp()
    weights = weights if mask is None else weights.masked_fill(~mask, 0.0)
    assert torch.allclose(found.received(total), weights[0].sum(1), atol=1e-10)


def test_a_list_of_each_head_takes_the_keys_of_its_head():
    of, columns = row(20), torch.stack([torch.randperm(20)[:5].sort().values for _ in range(4)])[None]
    expected = torch.stack([of.k[0, head // 2, columns[0, head]] for head in range(4)])[None]
    assert torch.equal(gather(of.k, columns), expected)


def test_keys_are_turned_in_the_columns_that_are_asked_for():
    method, at = StreamingLLM.create(**LENGTHS, sinks=4, window=12), torch.arange(100)[None]
    for band in place(method.bands(2.0), Spectrum(THETA, THETA), at[:, -1:], at):
        assert band.key is not None
        for every, some in zip(band.key, band.turn_of(slice(30, 50)), strict=True):
            assert torch.equal(every[:, :, 30:50], some)
