"""The engine: one softmax over all bands, whatever the tiles, layouts, heads and columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as turn_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn_halves

from longwave.attention import ATTENTIONS
from longwave.attention.bands import Attention
from longwave.attention.engine import Scoring, attend, dense, merge
from longwave.attention.kernels import with_lse
from longwave.attention.layout import LAYOUTS, Layout
from longwave.attention.placement import Placed, place
from longwave.attention.spectrum import Spectrum

L = 24
BANDED = sorted(ATTENTIONS)


def made(name: str, max_factor: float = 4.0, **options: Any) -> Attention:
    return ATTENTIONS[name].create(original_length=L, max_factor=max_factor, **options)


def theta(pairs: int = 4) -> Tensor:
    return 50.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)


def placed_at(attention: Attention, t: float, positions: Tensor, columns: Tensor) -> list[Placed]:
    return place(attention.bands(t), Spectrum(theta(), theta() / attention.factor(t)), positions, columns)


def tensors(tokens: int, keys: int = 0, *, heads: int = 4, key_heads: int = 2, batch: int = 1) -> list[Tensor]:
    shapes = (heads, tokens), (key_heads, keys or tokens), (key_heads, keys or tokens)
    return [torch.randn(batch, *shape, 8, dtype=torch.float64) for shape in shapes]


@given(st.sampled_from(BANDED), st.integers(25, 90), st.integers(1, 100), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_tiles_equal_one_softmax(name: str, tokens: int, tile: int, interleaved: bool, seed: int) -> None:
    torch.manual_seed(seed)
    attention, at = made(name), torch.arange(tokens)[None]
    placed = placed_at(attention, tokens / L, at, at)
    how = Scoring(Layout(interleaved), 0.4, torch.rand(4, dtype=torch.float64))
    q, k, v = tensors(tokens)
    with torch.no_grad():
        assert torch.allclose(attend(q, k, v, placed, how, tile), dense(q, k, v, placed, how), atol=1e-12)


@pytest.mark.parametrize("name", BANDED)
def test_the_last_query_alone_equals_the_whole(name: str) -> None:
    attention, at = made(name), torch.arange(70)[None]
    q, k, v = tensors(70)
    how = Scoring(Layout(), 0.4)
    with torch.no_grad():
        whole = attend(q, k, v, placed_at(attention, 3.0, at, at), how)
        last = attend(q[:, :, -1:], k, v, placed_at(attention, 3.0, at[:, -1:], at), how)
    assert torch.allclose(whole[:, :, -1:], last, atol=1e-12)


@pytest.mark.parametrize("name", BANDED)
def test_columns_without_keys_change_nothing(name: str) -> None:
    attention, tokens = made(name), 60
    q, k, v = tensors(tokens, batch=3)
    at = torch.arange(tokens).expand(3, -1)
    how = Scoring(Layout(), 0.4)
    left, right = 5, 9
    columns = torch.nn.functional.pad(at, (left, right), value=-1)
    padded = [torch.nn.functional.pad(x, (0, 0, left, right), value=7.0) for x in (k, v)]
    columns[1] = torch.cat([torch.full((2,), -1), at[0], torch.full((12,), -1)])  # a row with other padding
    for x, own in zip(padded, (k, v), strict=True):
        x[1] = 7.0
        x[1, :, 2 : 2 + tokens] = own[1]
    with torch.no_grad():
        expected = attend(q, k, v, placed_at(attention, 2.5, at, at), how)
        found = attend(q, *padded, placed_at(attention, 2.5, at, columns), how, 16)
    assert torch.allclose(found, expected, atol=1e-12)


def test_mass_is_a_bias_on_every_far_logit() -> None:
    """Values and gradients of the dense softmax that has -β_h·ln(max(1, n_far/(L - w))) on each far logit."""
    tokens, attention = 80, made("two-band", window=6)
    q, k, v = (x.requires_grad_() for x in tensors(tokens))
    beta = torch.tensor([0.3, 1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    at = torch.arange(tokens)[None]
    placed = placed_at(attention, tokens / L, at, at)
    how = Scoring(Layout(), 0.4, beta)
    found = attend(q, k, v, placed, how)

    query, key = at[0][:, None].double(), at[0].double()
    far = key <= query - 6
    scores = []
    for band in placed:
        turned, keys = Layout().turn(q, *band.query), Layout().turn(k, *band.key)
        scores.append(turned @ keys.repeat_interleave(2, 1).mT * 0.4)
    bias = -beta[:, None, None] * ((query - 5) / (L - 6)).clamp(min=1).log()
    logits = torch.where(far, scores[1] + bias, scores[0]).masked_fill(key > query, float("-inf"))
    expected = logits.softmax(-1) @ v.repeat_interleave(2, 1)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, [q, k, v, beta], weights, retain_graph=True),
        torch.autograd.grad(expected, [q, k, v, beta], weights),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-10) and float(mine.abs().max()) > 1e-3
    with torch.no_grad():  # and the merge of log-sum-exps
        assert torch.allclose(attend(q, k, v, placed, how, 16), expected, atol=1e-12)


def test_heads_read_the_key_head_of_their_group() -> None:
    """h // G, not h mod H_kv: the value of key head 0 is 0, that of key head 1 is 1."""
    attention, at = made("two-band"), torch.arange(50)[None]
    q, k, v = tensors(50, heads=6, key_heads=2)
    v[:, 0], v[:, 1] = 0.0, 1.0
    for queries in (slice(None), slice(49, None)):
        with torch.no_grad():
            placed = placed_at(attention, 2.0, at[:, queries], at)
            output = attend(q[:, :, queries], k, v, placed, Scoring(Layout(), 0.4))
        assert torch.allclose(output.mean((0, 2, 3)), torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64))


def test_the_scaling_reaches_keys_at_position_0() -> None:
    attention, at = made("dca"), torch.arange(40)[None]
    q, k, v = tensors(40)
    how = Scoring(Layout(), 0.4)
    bands = attention.bands(1.5)
    with torch.no_grad():
        scaled = attend(q, k, v, place(bands, Spectrum(theta(), theta(), 1.2), at, at), how)
        by_hand = attend(q * 1.44, k, v, place(bands, Spectrum(theta(), theta()), at, at), how)  # R = D here
    assert torch.allclose(scaled, by_hand, atol=1e-12)


def test_layouts_are_those_of_transformers() -> None:
    x, phase = torch.randn(1, 2, 5, 8), torch.randn(1, 5, 4)
    halves, pairs = torch.cat([phase, phase], -1), phase.repeat_interleave(2, -1)
    cos, sin = phase.cos()[:, None], phase.sin()[:, None]
    assert torch.allclose(Layout().turn(x, cos, sin), turn_halves(x, x, halves.cos(), halves.sin())[0], atol=1e-6)
    interleaved = Layout(interleaved=True).turn(x, cos, sin)
    assert torch.allclose(interleaved, turn_interleaved(x, x, pairs.cos(), pairs.sin())[0], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dimensions_that_do_not_turn_stay(layout: Layout) -> None:
    x, phase = torch.randn(1, 2, 5, 12), torch.randn(1, 1, 5, 4)
    turned = layout.turn(x, phase.cos(), phase.sin())
    kept = slice(0, 4) if layout.at_end else slice(8, None)
    assert torch.equal(turned[..., kept], x[..., kept]) and not torch.equal(turned, x)
    back = layout.turn(turned, phase.cos(), -phase.sin())
    assert torch.allclose(back, x, atol=1e-6)


def test_a_query_without_keys_has_no_weight() -> None:
    q, k, v = tensors(3, 5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()[None, None]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output, lse = with_lse(q, k, v, mask, 0.4)
        assert output[:, :, 1].abs().max() == 0 and bool(lse[:, :, 1].isneginf().all())
        assert bool(merge([(output, lse), (output, lse)]).isfinite().all())
