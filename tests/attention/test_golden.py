"""Every method against a brute-force reference: one query and one key at a time, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longwave.attention import get_attention
from longwave.attention.engine import Scoring, attend, dense
from longwave.attention.layout import Layout
from longwave.attention.placement import place
from longwave.attention.spectrum import Spectrum
from longwave.attention.temperature import log_n_scale

RENAMED = {"offset": "shift", "factor": "divisor"}  # options that the reference names otherwise
EXACT = {torch.float64: 1e-10, torch.float32: 2e-5}
METHODS = "self-extend", "dca", "string", "rerope", "leaky-rerope", "streaming-llm", "lm-infinite"


class Case:
    """A case of the golden file."""

    def __init__(self, folder: Path, name: str, case: dict[str, Any]) -> None:
        self.about, self.arrays = case, np.load(folder / f"{name}.npz")

    def __getattr__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{self.about['case']}/{name}"])

    @property
    def qkv(self) -> list[torch.Tensor]:
        return [self.q[None], self.k[None], self.v[None]]


def cases(shared: Path, name: str) -> list[Case]:
    listed = json.loads((shared / "golden" / f"{name}.json").read_text())["cases"]
    return [Case(shared / "golden", name, case) for case in listed]


def options(case: Case) -> dict[str, Any]:
    given = {RENAMED.get(name, name): value for name, value in case.about["parameters"].items()}
    if "chunk" in given and case.about["method"] == "dca":
        given["reach"] = given.pop("chunk") / case.about["tokens"]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("tile", [7, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_outputs(shared: Path, method: str, rotated: bool, dtype: torch.dtype, tile: int) -> None:
    found = [case for case in cases(shared, "attention") if case.about["method"] == method]
    assert found
    for case in found:
        tokens = case.about["tokens"]
        attention = get_attention(method).create(original_length=tokens, max_factor=1.0, **options(case))
        (q, k, v), at = case.qkv, torch.arange(tokens)[None]
        if case.about["log_n_length"]:
            q = q * case.query_scale[:, None]
        bands, spectrum = attention.bands(1.0), Spectrum(case.inv_freq, case.inv_freq, case.about["rope_scaling"])
        stored = bands[attention.stored] if rotated else None
        if stored is not None:
            phase = spectrum.phase(stored, stored.key(at.double()))[:, None]
            q, k = (Layout().turn(x, phase.cos(), phase.sin()) for x in (q, k))
        placed = place(bands, spectrum, at, at, stored)
        scoring = Scoring(Layout(), q.shape[-1] ** -0.5)
        with torch.no_grad():
            output = attend(q.to(dtype), k.to(dtype), v.to(dtype), placed, scoring, tile)
        assert (output[0] - case.output).abs().max() < EXACT[dtype], case.about
        assert (dense(q, k, v, placed, scoring)[0] - case.output).abs().max() < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_the_distances(shared: Path, method: str) -> None:
    for case in cases(shared, "attention"):
        if case.about["method"] != method:
            continue
        tokens = case.about["tokens"]
        attention = get_attention(method).create(original_length=tokens, max_factor=1.0, **options(case))
        assert torch.equal(distances(attention, 1.0, tokens), case.distance.nan_to_num(-1.0))


def distances(attention: Any, t: float, tokens: int) -> torch.Tensor:
    """The distance of every pair [tokens, tokens]; -1 where the query does not see the key."""
    at = torch.arange(tokens, dtype=torch.float64)
    found = torch.full((tokens, tokens), -1.0, dtype=torch.float64)
    for band in attention.bands(t):
        seen = (band.first(at)[:, None] <= at) & (at < band.last(at)[:, None])
        found = torch.where(seen, band.lead + band.query(at)[:, None] - band.key(at), found)
    return found


def test_two_bands_with_mass_and_temperature(shared: Path) -> None:
    seen = 0
    for case in cases(shared, "two_band"):
        about = case.about
        if about["n"] <= about["L"]:
            continue  # the plain model
        seen += 1
        attention = get_attention("two-band").create(
            original_length=about["L"], max_factor=16.0, window=about["w"], reach=about["reach"], mass=about["beta"]
        )
        t, (q, k, v), at = about["n"] / about["L"], case.qkv, torch.arange(about["n"])[None]
        far = case.inv_freq_far if about["far"] == "given" else case.inv_freq / attention.factor(t)
        scale_of_queries = log_n_scale(at, about["L"], about["exponent"]) if about["exponent"] else torch.ones(at.shape)
        q = q * scale_of_queries[:, None, :, None]
        placed = place(attention.bands(t), Spectrum(case.inv_freq, far), at, at)
        scoring = Scoring(Layout(), q.shape[-1] ** -0.5, about["beta"])
        exact = 1e-10 if not about["exponent"] else 5e-7  # log-n is float32
        with torch.no_grad():
            assert (attend(q, k, v, placed, scoring)[0] - case.output).abs().max() < exact, about
        assert (dense(q, k, v, placed, scoring)[0] - case.output).abs().max() < exact, about
    assert seen >= 8
