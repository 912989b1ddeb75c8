"""Bands of one request in an engine whose cache holds keys at their own positions, rotated by θ(1).

The engine rotates queries and keys as the plain model does. Here the keys of each band are turned on from there, by
the difference of two angles: a far key of two-band by j·(θ(t) - θ(1)). Kernels and merge are those of
`longwave.attention.engine`. Nothing of an engine here, and no transformers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longwave.attention import get_attention
from longwave.attention.bands import Attention, Band, same, zero
from longwave.attention.engine import Scoring, attend
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed, Spectrum, place
from longwave.serving.profiles import Profiles

STORED = Band(zero, lambda p: p + 1, same, same, own=True)  # how the cache holds keys
LEAST = 1024  # positions that are worked out at once


class BandedProfile:
    """The bands of one profile with t > 1. Layers and requests share what is worked out of their positions.

    Arguments:
        profiles: of a folder with bands.
        number: of the profile.
        layout: which dimensions of a head are turned.
    """

    def __init__(self, profiles: Profiles, number: int, layout: Layout) -> None:
        own, profile = profiles.bands, profiles.profiles[number]
        assert own is not None and number > 0
        far, self.layout = own.far[number - 1], layout
        theta, plain = (torch.tensor(each, dtype=torch.float64) for each in (far.inv_freq, profile.inv_freq))
        self.spectrum = Spectrum(plain, theta, far.attention_scaling)
        still = torch.equal(theta, plain) and far.attention_scaling == 1
        bands = method_of(profiles).bands(profile.factor)
        self.bands = tuple(replace(band, own=True) if still else band for band in bands)
        self._every: list[Placed] = []
        self._known = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placed: list[Placed], scale: float, mass: float | Tensor) -> Tensor:
        """Attention of a request, [1, H, n, D].

        Arguments:
            q: [1, H, n, D], the last n of m tokens; k, v: [1, H_kv, m, D]. q and k as the plain model rotates them.
            placed: of these tokens, see `placed`.
            scale: of all logits.
            mass: β of all heads, or of each, [H].
        """
        return attend(q, k, v, placed, Scoring(self.layout, scale, mass))

    def placed(self, start: int, stop: int, device: torch.device) -> list[Placed]:
        """Queries at the positions start <= p < stop, and keys at 0 <= j < stop, in every band."""
        if stop > self._known:
            self._work_out(max(LEAST, 1 << (stop - 1).bit_length()), device)
        return [_part(band, start, stop) for band in self._every]

    def _work_out(self, count: int, device: torch.device) -> None:
        positions = torch.arange(count, device=device)[None]
        self._every = place(self.bands, self._on(device), positions, positions, STORED, torch.float32)
        self._known = count

    def _on(self, device: torch.device) -> Spectrum:
        return replace(self.spectrum, own=self.spectrum.own.to(device), theta=self.spectrum.theta.to(device))


def method_of(profiles: Profiles) -> Attention:
    """The attention method of a folder with bands.

    Raises:
        ValueError: for one that this longwave does not have, or that is more than bands.
    """
    bands = profiles.bands
    assert bands is not None
    kind = get_attention(bands.method)
    if kind.remembers:
        raise ValueError(f"{bands.method} is more than bands. Run it with longwave.")
    return kind.create(**bands.options, original_length=profiles.original_length, max_factor=bands.max_factor)


def _part(band: Placed, start: int, stop: int) -> Placed:
    """Some queries of a band, and the keys before the last of them."""
    rows, columns = slice(start, stop), slice(0, stop)
    turn = None if band.key is None else tuple(each[:, :, columns] for each in band.key)
    excess = None if band.excess is None else band.excess[..., rows]
    cos, sin = (each[:, :, rows] for each in band.query)
    return Placed(band.low[:, rows], band.high[:, rows], (cos, sin), turn, excess)  # type: ignore[arg-type]
