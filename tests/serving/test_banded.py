"""Bands over a cache that an engine keeps: against longwave's own attention, and the golden values."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from longwave.attention import get_attention
from longwave.attention.engine import Scoring, dense
from longwave.attention.layout import Layout
from longwave.attention.placement import Spectrum, place
from longwave.attention.temperature import log_n_scale
from longwave.serving.banded import BandedProfile
from longwave.serving.bands import Bands
from longwave.serving.profiles import Profile, Profiles
from longwave.serving.vllm import banding
from longwave.serving.vllm.banding import Batch, LayerBands, banded_class
from longwave.serving.vllm.caches import columns, halves

METHODS = "two-band", "leaky-rerope", "rerope", "self-extend", "dca", "streaming-llm", "lm-infinite"
L, HEADS, KEY_HEADS, WIDTH = 32, 4, 2, 16
OWN = tuple((10.0 ** -torch.arange(WIDTH // 2, dtype=torch.float64).div(4)).tolist())
CPU = torch.device("cpu")


def folder(method: str, t: float, far: tuple[float, ...], scaling: float = 1.0, **options: Any) -> Profiles:
    """The profiles 1 and t of a model with an attention method."""
    length = options.pop("length", L)
    own = options.pop("own", OWN)
    return Profiles(
        length,
        (Profile(1.0, length, (), 1.0, own), Profile(t, int(length * t), (), scaling, far)),
        bands=Bands(method, options, 16.0),
    )


def rotated(banded: BandedProfile, x: torch.Tensor) -> torch.Tensor:
    """Queries or keys as the engine's table has them."""
    cos, sin = banded.rows(x.shape[2]).chunk(2, dim=-1)
    return banded.layout.turn(x, cos[None, None], sin[None, None])


def drawn(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, HEADS, tokens, WIDTH), *(torch.randn(1, KEY_HEADS, tokens, WIDTH) for _ in range(2))


@torch.inference_mode()
@pytest.mark.parametrize("scaling", [1.0, 1.1])
@pytest.mark.parametrize("method", METHODS)
def test_a_request_in_parts_is_the_whole_one(method: str, scaling: float) -> None:
    """Chunks of a prompt and tokens of an answer, each from its place in the cache, against one softmax of all."""
    t, mass = 4.0, 0.7
    attention = get_attention(method).create(original_length=L, max_factor=16.0)
    factor = max(1.0, attention.factor(t))
    far = tuple(each / factor for each in OWN)
    banded, (q, k, v) = BandedProfile(folder(method, t, far, scaling), 1), drawn(int(t * L))
    at = torch.arange(q.shape[2])[None]
    spectrum = Spectrum(torch.tensor(OWN), torch.tensor(far, dtype=torch.float64), scaling)
    placed = place(attention.bands(t), spectrum, at, at)
    wanted = dense(q.double(), k.double(), v.double(), placed, Scoring(Layout(), 0.25, mass))
    queries, keys, start, draw = rotated(banded, q), rotated(banded, k), 0, random.Random(1)
    while start < q.shape[2]:
        stop = min(q.shape[2], start + draw.choice([1, 1, 3, 20]))
        part = banded.attend(
            queries[:, :, start:stop], keys[:, :, :stop], v[:, :, :stop], banded.placed(start, stop, CPU), 0.25, mass
        )
        assert (part - wanted[:, :, start:stop]).abs().max() < 5e-6, (start, stop)
        start = stop


@torch.inference_mode()
@pytest.mark.parametrize("mass", [0.7, torch.tensor([0.0, 0.5, 1.0, 1.5])])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_several_requests_is_each_alone(method: str, mass: float | torch.Tensor) -> None:
    """Texts of other lengths, some of which have no far keys: what lies behind the end of a text does not matter."""
    t, lengths = 4.0, [1, 7, L, 40, 90, 4 * L, 90]
    attention = get_attention(method).create(original_length=L, max_factor=16.0)
    far = tuple(each / max(1.0, attention.factor(t)) for each in OWN)
    banded, texts = BandedProfile(folder(method, t, far), 1), [drawn(4 * L) for _ in lengths]
    q, k, v = (torch.cat(every) for every in zip(*texts, strict=True))
    q, k = rotated(banded, q), rotated(banded, k)
    last = torch.stack([q[row, :, length - 1 : length] for row, length in enumerate(lengths)])
    for some in ([0, 1, 2, 3, 4, 5, 6], [4, 6], [5]):
        bands = banded.step([lengths[row] for row in some], CPU)
        found = banded.attend_step(last[some], k[some], v[some], bands, 0.25, mass)
        for row, own in zip(some, found, strict=True):
            n = lengths[row]
            placed = banded.placed(n - 1, n, CPU)
            alone = banded.attend(last[row][None], k[row, :, :n][None], v[row, :, :n][None], placed, 0.25, mass)
            assert (own - alone[0]).abs().max() < 2e-6, (some, row)


@torch.inference_mode()
def test_two_bands_are_the_golden_ones(shared: Path) -> None:
    listed = json.loads((shared / "golden" / "two_band.json").read_text())["cases"]
    arrays, seen = np.load(shared / "golden" / "two_band.npz"), 0
    for about in listed:
        if about["n"] <= about["L"]:
            continue  # the plain model
        seen += 1
        q, k, v, own = (torch.from_numpy(arrays[f"{about['case']}/{name}"]) for name in ("q", "k", "v", "inv_freq"))
        t, options = about["n"] / about["L"], {"window": about["w"], "reach": about["reach"], "mass": about["beta"]}
        factor = get_attention("two-band").create(original_length=about["L"], max_factor=16.0, **options).factor(t)
        given = about["far"] == "given"
        far = torch.from_numpy(arrays[f"{about['case']}/inv_freq_far"]) if given else own / factor
        profiles = folder("two-band", t, tuple(far.tolist()), length=about["L"], own=tuple(own.tolist()), **options)
        banded, at = BandedProfile(profiles, 1), torch.arange(about["n"])
        scale = log_n_scale(at, about["L"], about["exponent"])[:, None] if about["exponent"] else 1.0
        turned = rotated(banded, (q * scale)[None].float()), rotated(banded, k[None].float())
        placed = banded.placed(0, about["n"], CPU)
        found = banded.attend(*turned, v[None].float(), placed, q.shape[-1] ** -0.5, about["beta"])
        assert (found[0] - torch.from_numpy(arrays[f"{about['case']}/output"])).abs().max() < 1e-5, about
    assert seen >= 8


@pytest.mark.parametrize("tokens", [5, 8, 20])
def test_caches_are_read_as_they_were_written(tokens: int) -> None:
    """For one block, too: the kernel for CPUs takes for granted that the dimensions of a key lie together."""
    size, blocks = 8, torch.tensor([3, 1, 4], dtype=torch.int32)
    key, value = (torch.randn(KEY_HEADS, 24, WIDTH) for _ in range(2))
    by_rows, by_columns = (torch.zeros(6, KEY_HEADS, size, 2 * WIDTH) for _ in range(2))
    whole = by_columns.view(6, KEY_HEADS, 2, -1)
    for number, block in enumerate(blocks.tolist()):
        own = slice(number * size, (number + 1) * size)
        by_rows[block] = torch.cat((key[:, own], value[:, own]), dim=-1)
        whole[block, :, 0], whole[block, :, 1] = key[:, own].mT.flatten(1), value[:, own].flatten(1)
    used = blocks[: -(-tokens // size)]
    used = torch.stack((used, used.flip(0)))
    for reader, cache in ((halves, by_rows), (columns, by_columns)):
        k, v = reader(cache, used)
        assert torch.equal(k[0, :, :tokens], key[:, :tokens]) and torch.equal(v[0, :, :tokens], value[:, :tokens])
        last = slice((used.shape[1] - 1) * size, used.shape[1] * size)  # of the other request: its blocks the other way
        assert torch.equal(k[1, :, last], key[:, :size]) and torch.equal(v[1, :, last], value[:, :size])
        assert k.stride(-1) == v.stride(-1) == 1


class Backend:
    """An attention of an engine: writes 7 into the rows of its batch."""

    scale, ran = 0.25, 0

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output):
        self.ran += 1
        return output.fill_(7.0)


@torch.inference_mode()
def test_only_requests_beyond_l_have_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests share a batch: the second, of four new tokens, has bands, and the others keep their attention."""
    profiles = folder("two-band", 4.0, tuple(each / 4 for each in OWN))
    batch = Batch({1: BandedProfile(profiles, 1)})
    bands = batch.profiles[1]
    q, k, v = drawn(50)
    queries, keys = rotated(bands, q), rotated(bands, k)
    cache = torch.zeros(9, KEY_HEADS, 16, 2 * WIDTH)
    cache[[2, 5, 6, 8]] = torch.cat(
        [torch.nn.functional.pad(each[0], (0, 0, 0, 14)).unflatten(1, (4, 16)).transpose(0, 1) for each in (keys, v)],
        -1,
    )
    query = torch.randn(7, HEADS, WIDTH)
    query[1:5] = queries[0, :, 46:].transpose(0, 1)
    metadata = SimpleNamespace(
        query_start_loc=torch.tensor([0, 1, 5, 7]),
        seq_lens=torch.tensor([20, 50, 30]),
        block_table=torch.tensor([[0, 1, 0, 0], [2, 5, 6, 8], [3, 4, 0, 0]]),
    )
    impl = banded_class(Backend)()
    mass = torch.tensor([0.0, 0.5, 1.0, 1.5])
    impl.longwave_bands = LayerBands(batch, mass, halves)
    ask = None, query, None, None, cache, metadata
    wanted = bands.attend(queries, keys, v, bands.placed(0, 50, CPU), 0.25, mass)[0, :, 46:].transpose(0, 1)
    with batch.running([0, 1, 0]):
        output = impl.forward(*ask, torch.zeros(7, HEADS, WIDTH))
    assert impl.ran == 1 and bool((output[[0, 5, 6]] == 7).all()) and torch.allclose(output[1:5], wanted, atol=1e-5)
    assert bool((impl.forward(*ask, torch.zeros(7, HEADS, WIDTH)) == 7).all()), "outside of a forward nothing has bands"
    ran, alone = (
        impl.ran,
        SimpleNamespace(
            query_start_loc=torch.tensor([0, 4]), seq_lens=metadata.seq_lens[1:], block_table=metadata.block_table[1:]
        ),
    )
    cache[7] = cache[5]  # the second block of a text of 17 tokens: one of them is its own
    cache[7, :, 1:] = float("nan")
    several = SimpleNamespace(
        query_start_loc=torch.tensor([0, 1, 5, 6, 7]),
        seq_lens=torch.tensor([50, 50, 30, 17]),
        block_table=torch.tensor([[2, 5, 6, 8], [2, 5, 6, 8], [2, 5, 0, 0], [2, 7, 7, 7]]),
    )
    mixed = torch.cat((queries[0, :, 49:], queries[0, :, 46:], queries[0, :, 29:30], queries[0, :, 16:17]), 1)
    whole = [bands.attend(queries[:, :, :n], keys[:, :, :n], v[:, :, :n], bands.placed(0, n, CPU), 0.25, mass)[0, :, -1]
             for n in (30, 17)]  # fmt: skip
    monkeypatch.setattr(banding, "GATHERED", 60)  # two parts: 17 and 30 tokens, and 50 alone
    with batch.running([1, 1, 1, 1]):
        parts = batch.parts(several)
        assert [len(getattr(part, "rows", "1")) for part in parts] == [1, 2, 1]
        output = impl.forward(None, mixed.transpose(0, 1), None, None, cache, several, torch.zeros(7, HEADS, WIDTH))
    assert torch.allclose(output, torch.stack((wanted[3], *wanted, *whole)), atol=1e-5)
    with batch.running([1]):
        output = impl.forward(None, query[1:5], None, None, cache, alone, torch.zeros(4, HEADS, WIDTH))
    assert impl.ran == ran, "no kernel runs whose output nobody needs"
    assert torch.allclose(output, wanted, atol=1e-5)
