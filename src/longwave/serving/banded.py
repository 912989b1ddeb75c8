"""Bands of one request in an engine that rotates keys by one table, and caches them so.

The table has a row for each position: where the band that has most keys places them (`Attention.stored`), as longwave's
own caches have it. For two-band that is j·θ(t): far keys lie in the cache as they are needed, and the near keys, w of
them, are turned on from there. Kernels and merge are those of `longwave.attention.engine`. Nothing of an engine here,
and no transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longwave.attention import get_attention
from longwave.attention.bands import Attention, Band, near
from longwave.attention.engine import Scoring, attend
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed, Spectrum, Turns, place
from longwave.attention.step import StepBand, attend_step
from longwave.serving.profiles import Profiles


class BandedProfile:
    """The bands of one profile with t > 1. Layers and requests share what is worked out of their positions.

    Arguments:
        profiles: of a folder with bands.
        number: of the profile.
        layout: which dimensions of a head are turned; None for whole heads by halves.
        padding: more positions than the profile's length: tokens that are drafted, and may be refused.
    """

    def __init__(self, profiles: Profiles, number: int, layout: Layout | None = None, padding: int = 0) -> None:
        attention, (plain, profile) = method_of(profiles), (profiles.profiles[0], profiles.profiles[number])
        self.layout, self.own_scaling = layout or Layout(), plain.attention_scaling
        own, theta = (torch.tensor(each.inv_freq, dtype=torch.float64) for each in (plain, profile))
        self.spectrum = Spectrum(own, theta, profile.attention_scaling / plain.attention_scaling)
        self.bands = attention.bands(profile.factor)
        if torch.equal(own, theta) and self.spectrum.scaling == 1:  # no keys are turned by differences of zero
            self.bands = tuple(replace(band, own=True) for band in self.bands)
        whole = near(1, own=True) if attention.stored is None else self.bands[attention.stored]
        self.stored: Band = whole
        self.count = profile.length + padding
        self._every: list[Placed] = []
        self._edges: list[tuple[Tensor, Tensor]] = []  # of the bands' keys at all positions, on the host

    def rows(self, count: int) -> Tensor:
        """cos and sin by which the engine rotates queries and keys at the first positions, [count, R], float32.

        Angles are float32, as longwave's own caches have them: engine and longwave then round alike.
        """
        places = self.stored.key(torch.arange(count, dtype=torch.float64)).float()
        phase = places[:, None] * self.spectrum.of(self.stored).float()
        return torch.cat((phase.cos(), phase.sin()), dim=-1) * self.own_scaling

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, placed: list[Placed], scale: float, mass: float | Tensor
    ) -> Tensor:
        """Attention of a request, [1, H, n, D].

        Arguments:
            q: [1, H, n, D], the last n of m tokens; k, v: [1, H_kv, m, D]. q and k as `rows` rotates them.
            placed: of these tokens, see `placed`.
            scale: of all logits.
            mass: β of all heads, or of each, [H].
        """
        return attend(q, k, v, placed, Scoring(self.layout, scale, mass))

    def placed(self, start: int, stop: int, device: torch.device) -> list[Placed]:
        """Queries at the positions start <= p < stop, and keys at 0 <= j < stop, in every band."""
        self.prepare(device)
        return [_part(band, start, stop) for band in self._every]

    def step(self, lengths: Sequence[int], device: torch.device) -> list[StepBand]:
        """The bands of several requests that have one new token each, the last one of their lengths."""
        self.prepare(device)
        last = torch.tensor(lengths) - 1
        positions = last.to(device)
        every = zip(self._every, self._edges, strict=True)
        found = (StepBand.of(band, low[last], high[last], positions) for band, (low, high) in every)
        return [band for band in found if band is not None]

    def attend_step(
        self, q: Tensor, k: Tensor, v: Tensor, bands: Sequence[StepBand], scale: float, mass: float | Tensor
    ) -> Tensor:
        """Attention of these requests, [B, H, 1, D]; the arguments as for `attend`, a row for each request."""
        return attend_step(q, k, v, bands, Scoring(self.layout, scale, mass))

    def prepare(self, device: torch.device) -> None:
        """Work out cos and sin of all positions: at the start, before an engine measures what memory is left."""
        if self._every:
            return
        positions = torch.arange(self.count, device=device)[None]
        on = replace(self.spectrum, own=self.spectrum.own.to(device), theta=self.spectrum.theta.to(device))
        self._every = place(self.bands, on, positions, positions, self.stored, torch.float32)
        self._edges = [(band.low[0].cpu(), band.high[0].cpu()) for band in self._every]


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
    rows = slice(start, stop)
    key = band.key
    if key is not None:
        cos, sin = key
        key = Turns(lambda columns: (cos[:, :, columns], sin[:, :, columns]), stop)
    cos_of_query, sin_of_query = band.query
    turn = cos_of_query[:, :, rows], sin_of_query[:, :, rows]
    excess = None if band.excess is None else band.excess[..., rows]
    return Placed(band.low[:, rows], band.high[:, rows], turn, key, excess)
