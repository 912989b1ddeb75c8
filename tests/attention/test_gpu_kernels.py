"""Kernels for GPUs: what of them runs on a CPU, and on a GPU each of them against one dense softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longwave.attention import ATTENTIONS, engine, flex, gpu_kernels
from longwave.attention.engine import Scoring, attend, dense, whole
from longwave.attention.kernels import _matmul, with_lse
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed, place
from longwave.attention.spectrum import Spectrum

L = 64
PADDING = [(0,), (0, 17), (5, 5), (70, 0)]  # in front of the rows
METHODS = ("two-band", "self-extend", "dca", "streaming-llm")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def placed_at(name: str, positions: Tensor, columns: Tensor, pairs: int = 8) -> tuple[list[Placed], Scoring]:
    t = float(columns.max() + 1) / L
    attention = ATTENTIONS[name].create(original_length=L, max_factor=max(t, 1.5))
    theta = 50.0 ** -(torch.arange(pairs, dtype=torch.float64, device=columns.device) / pairs)
    placed = place(attention.bands(t), Spectrum(theta, theta / attention.factor(t)), positions, columns)
    return placed, Scoring(Layout(), 0.25, getattr(attention, "mass", 0.0))


def padded(tokens: int, left: tuple[int, ...], holes: int = 0) -> tuple[Tensor, Tensor]:
    """Positions of queries and columns [rows, tokens], each row with its padding, and with holes behind column 20."""
    columns = torch.stack([torch.cat([torch.full((n,), -1), torch.arange(tokens - n)]) for n in left])
    columns[:, 20 : 20 + holes] = -1
    return columns.clamp(min=0), columns


def tensors(
    tokens: int, keys: int, batch: int = 1, heads: int = 4, key_heads: int = 2, width: int = 16
) -> list[Tensor]:
    shapes = (heads, tokens), (key_heads, keys), (key_heads, keys)
    return [torch.randn(batch, *shape, width, dtype=torch.float64) for shape in shapes]


edges = st.lists(st.tuples(st.integers(0, 520), st.integers(0, 520)), min_size=1, max_size=6)


@given(st.integers(1, 520), st.integers(1, 520), edges, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_blocks_hold_every_pair(
    tokens: int, count: int, ends: list[tuple[int, int]], rising: bool, holes: bool
) -> None:
    """Intervals in stretches of equal ones, or rising with the query as in a band."""
    row = torch.arange(tokens)
    which = row * len(ends) // tokens
    low, high = (torch.tensor([end[side] for end in ends])[which][None] for side in (0, 1))
    if rising:
        low, high = low + row - tokens // 2, high + row - tokens // 2
    low, high = low.clamp(0, count), high.clamp(0, count)
    found = flex.blocks(low, high, count, holes=holes)
    column = torch.arange(count)
    seen = (low[..., None] <= column) & (column < high[..., None])
    size = flex.BLOCK
    every = torch.nn.functional.pad(seen, (0, -count % size, 0, -tokens % size))[0]
    every = every.unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2)
    for query in range(every.shape[0]):
        some = found.some_at[0, 0, query, : found.some[0, 0, query]].tolist()
        all_of = found.whole_at[0, 0, query, : found.whole[0, 0, query]].tolist()
        listed = some + all_of
        assert len(set(listed)) == len(listed) and set(listed) <= set(range(every.shape[1]))
        assert {block for block in range(every.shape[1]) if bool(every[query, block].any())} <= set(listed)
        wholly = {block for block in range(every.shape[1]) if bool(every[query, block].all())}
        assert set(all_of) == (set() if holes else wholly)


def test_a_causal_band_reads_half_of_the_blocks() -> None:
    n = 4096
    at = torch.arange(n)[None]
    found = flex.blocks(torch.zeros_like(at), at + 1, n)
    count = n // flex.BLOCK
    assert found.some.flatten().tolist() == [1] * count
    assert found.whole.flatten().tolist() == list(range(count))


@given(st.sampled_from(METHODS), st.integers(130, 300), st.sampled_from(PADDING), st.integers(0, 9))
@settings(max_examples=12, deadline=None)
@pytest.mark.slow
def test_a_band_in_one_call_equals_one_softmax(name: str, tokens: int, left: tuple[int, ...], holes: int) -> None:
    torch.manual_seed(tokens)
    positions, columns = padded(tokens, left, holes)
    placed, how = placed_at(name, positions, columns)
    for heads, key_heads in ((7, 1), (2, 2)):
        q, k, v = tensors(tokens, tokens, len(left), heads, key_heads)
        with torch.no_grad():
            found, expected = whole(q, k, v, placed, how), dense(q, k, v, placed, how)
        assert torch.allclose(found, expected, atol=1e-11)


def test_one_mask_serves_all_layers() -> None:
    at = torch.arange(150)[None]
    band = placed_at("two-band", at, at)[0][1]
    columns = slice(0, 150)
    assert flex.block_mask(band, columns, 2) is flex.block_mask(band, columns, 2)
    assert flex.block_mask(band, columns, 2) is not flex.block_mask(band, columns, 1)


def test_gradients_pass_through_the_merge_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention has no gradient on CPUs: here a masked product takes its place, with the mask of its blocks."""
    from torch.nn.attention.flex_attention import create_mask

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> tuple[Tensor, Tensor]:
        seen = create_mask(mask.mask_mod, q.shape[0], 1, q.shape[2], k.shape[2], device="cpu")
        return _matmul(q, k, v, seen, scale)

    monkeypatch.setattr(engine.flex, "attend", attention)
    positions, columns = padded(150, (0, 20))
    placed, how = placed_at("two-band", positions, columns)
    q, k, v = (x.requires_grad_() for x in tensors(150, 150, 2))
    beta = torch.tensor([0.3, 1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    how = Scoring(how.layout, how.scale, beta)
    found, expected = whole(q, k, v, placed, how), dense(q, k, v, placed, how)
    weights = torch.randn_like(found)
    weights[1, :, :20] = 0  # padding
    mine = torch.autograd.grad((found * weights).sum(), [q, k, v, beta])
    theirs = torch.autograd.grad((expected * weights).sum(), [q, k, v, beta])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10) and float(a.abs().max()) > 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_heads_are_laid_for_the_kernel_as_they_were(masked: bool) -> None:
    """What `efficient` does before and after its kernel, with a product of matrices as the kernel."""
    q, k, v = tensors(9, 13, 2, 6, 2)
    mask = torch.rand(2, 1, 9, 13) < 0.7 if masked else None
    expected = _matmul(q, k, v, mask, 0.3)
    q2, k2, v2 = gpu_kernels.repeated(q, k, v) if masked else gpu_kernels.packed(q, k, v)
    assert q2.shape[1] == k2.shape[1]
    logits = q2 @ k2.mT * 0.3
    if mask is not None:
        bias = gpu_kernels.bias_of(mask, q2)
        assert bias.shape == logits.shape and bias.stride(-1) == 1 and bias.stride(-2) % gpu_kernels.ALIGNED == 0
        logits = logits + bias
    found = (logits.softmax(-1) @ v2).reshape(q.shape), logits.logsumexp(-1).reshape(q.shape[:3])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_kernel_says_beforehand_what_it_takes() -> None:
    kernels = gpu_kernels.KERNELS
    half = [x.bfloat16() for x in tensors(80, 90)]
    single = [x.float() for x in half]
    mask = torch.ones(1, 1, 80, 90, dtype=torch.bool)
    assert kernels["flash"].takes(*half, None) and not kernels["flash"].takes(*half, mask)
    assert not kernels["flash"].takes(*single, None) and kernels["efficient"].takes(*single, mask)
    assert not kernels["efficient"].takes(*(x.double() for x in half), None)
    assert not kernels["efficient"].takes(half[0][:, :, :5], *half[1:], None)  # few queries
    assert not kernels["flash"].takes(*(x[..., :12] for x in half), None)  # head size 12
    assert not kernels["flash"].takes(*(x[..., 1:9] for x in half), None)  # not at a multiple of 16 bytes
    assert kernels["flash"].takes(half[0], *(x[:, :, 3:] for x in half[1:]), None)  # a part of the columns
    with gpu_kernels.using("flex", "flash", "efficient"):
        assert gpu_kernels.chosen(*half, None) is None  # on the CPU
        assert not flex.takes(*half, grad=False)
    assert gpu_kernels.tile(half[0], 256) == 256


def test_no_gpu_kernel_is_on_by_name_that_does_not_exist() -> None:
    assert set(gpu_kernels.ON) <= {"flex", "flex-grad", *gpu_kernels.KERNELS}


KINDS = [("flex",), ("flash", "efficient"), ("efficient",), ()]


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on", KINDS, ids="+".join)
def test_a_gpu_kernel_equals_one_softmax(name: str, dtype: torch.dtype, on: tuple[str, ...]) -> None:
    positions, columns = (x.cuda() for x in padded(700, (0, 40)))
    placed, how = placed_at(name, positions, columns, 32)
    q, k, v = (x.to("cuda", dtype) for x in tensors(700, 700, 2, 14, 2, 64))
    with torch.no_grad(), gpu_kernels.using(*on):
        found = attend(q, k, v, placed, how)
        expected = dense(q.double(), k.double(), v.double(), placed, how)
    assert (found - expected)[0].abs().max() < (2e-5 if dtype == torch.float32 else 4e-2)
    assert (found - expected)[1, :, 40:].abs().max() < (2e-5 if dtype == torch.float32 else 4e-2)


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_flex_are_those_of_one_softmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "DENSE", 0)
    at = torch.arange(300, device="cuda")[None]
    placed, how = placed_at(name, at, at, 32)
    q, k, v = (x.to("cuda", torch.float32).requires_grad_() for x in tensors(300, 300, 1, 14, 2, 64))
    with gpu_kernels.using("flex", "flex-grad"):
        found = attend(q, k, v, placed, how)
    expected = dense(q, k, v, placed, how)
    weights = torch.randn_like(found)
    mine, theirs = (torch.autograd.grad(x, [q, k, v], weights) for x in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


@needs_gpu
@pytest.mark.parametrize("kernel", sorted(gpu_kernels.KERNELS))
def test_the_log_sum_exp_of_a_gpu_kernel(kernel: str) -> None:
    q, k, v = (x.to("cuda", torch.bfloat16) for x in tensors(100, 333, 2, 14, 2, 64))
    with torch.no_grad(), gpu_kernels.using(kernel):
        assert gpu_kernels.chosen(q, k, v, None) is not None
        output, lse = with_lse(q, k, v, None, 0.125)
        expected = _matmul(q.double(), k.double(), v.double(), None, 0.125)
    assert (output - expected[0]).abs().max() < 2e-2 and (lse - expected[1]).abs().max() < 2e-2
