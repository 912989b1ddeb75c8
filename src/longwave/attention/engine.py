"""One softmax over all bands of a query: tiles of queries, a kernel for each band, and the merge of their results.

A kernel returns o_b and the log-sum-exp lse_b of a band's logits. The softmax over all bands is then exactly

    o = Σ_b w_b·o_b,    w_b = exp(lse_b - lse),    lse = ln Σ_b exp(lse_b).

Mass is a number that is added to all logits of a band, and so to its lse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longwave.attention import flex, gpu_kernels
from longwave.attention.kernels import with_lse
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed

TILE = 256  # queries that share a kernel call


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a query and a key become a logit.

    Arguments:
        layout: which dimensions are turned.
        scale: of all logits, 1/√D mostly.
        mass: β: the logits of a band get -β·ln(max(1, keys/room)), a number or [H].
    """

    layout: Layout
    scale: float
    mass: float | Tensor = 0.0

    def bias(self, band: Placed, rows: slice = slice(None)) -> Tensor | None:
        """What mass adds to the logits of some queries in a band, [B or 1, H or 1, n]; None for nothing."""
        return None if band.excess is None else self.of(band.excess[..., rows])

    def of(self, excess: Tensor | None) -> Tensor | None:
        """The same for what queries have too much, [B or 1, 1, n]."""
        if excess is None:
            return None
        beta = self.mass.reshape(1, -1, 1) if isinstance(self.mass, Tensor) else self.mass
        return -beta * excess


def attend(
    q: Tensor, k: Tensor, v: Tensor, placed: Sequence[Placed], scoring: Scoring, tile: int | None = None
) -> Tensor:
    """softmax(logits) v over all bands.

    Where flex_attention is in use, a band is one call (`whole`). Otherwise, with gradients, one dense tile of all bands
    is made (`dense`), which needs memory for n x m logits of every head.

    Arguments:
        q: [B, H, n, D]; k, v: [B, H_kv, m, D]; head h reads the keys of head ⌊h/(H/H_kv)⌋.
        placed: the bands of this forward.
        scoring: layout, scale and mass.
        tile: queries of a kernel call; None to choose by the device.

    Returns:
        [B, H, n, D], 0 for a query without keys.
    """
    grad = torch.is_grad_enabled() and _learns(q, k, v, placed, scoring)
    if tile is None and flex.takes(q, k, v, grad=grad):
        return whole(q, k, v, placed, scoring)
    if grad:
        return dense(q, k, v, placed, scoring)
    tile = gpu_kernels.tile(q, TILE) if tile is None else tile
    keys = [_Keys.of(k, v, band, scoring.layout) for band in placed]
    output = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
    for start in range(0, q.shape[2], tile):
        rows = slice(start, min(start + tile, q.shape[2]))
        parts = [part for own in keys for part in own.pieces(q[:, :, rows], rows, scoring)]
        output[:, :, rows] = merge(parts) if parts else 0.0
    return output


def _learns(q: Tensor, k: Tensor, v: Tensor, placed: Sequence[Placed], scoring: Scoring) -> bool:
    """Whether the output has a gradient. Where keys turn by learned frequencies, queries do, too."""
    given = [q, k, v, *(turn for band in placed for turn in band.query)]
    mass = [scoring.mass] if isinstance(scoring.mass, Tensor) else []
    return any(tensor.requires_grad for tensor in [*given, *mass])


def whole(q: Tensor, k: Tensor, v: Tensor, placed: Sequence[Placed], scoring: Scoring) -> Tensor:
    """`attend` with one call of flex_attention for each band: no tiles, and gradients without n x m logits."""
    parts = []
    for band in placed:
        keys = _Keys.of(k, v, band, scoring.layout)
        count = keys.k.shape[2]
        if not count:
            continue
        mask = flex.block_mask(band, slice(keys.offset, keys.offset + count), q.shape[0])
        output, lse = flex.attend(scoring.layout.turn(q, *band.query), keys.k, keys.v, mask, scoring.scale)
        bias = scoring.bias(band)
        parts.append((output, lse if bias is None else lse + bias))
    return merge(parts) if parts else torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """One softmax from the outputs [B, H, n, D] and log-sum-exps [B, H, n] of its parts."""
    if len(parts) == 1:
        return parts[0][0]
    outputs, every = [output for output, _ in parts], torch.stack([lse for _, lse in parts])
    total = every.logsumexp(0)
    weights = (every - torch.where(total.isneginf(), 0.0, total)).exp()[..., None]
    merged = outputs[0] * weights[0]
    for output, weight in zip(outputs[1:], weights[1:], strict=True):
        merged = merged + output * weight
    return merged.to(outputs[0].dtype)


def dense(q: Tensor, k: Tensor, v: Tensor, placed: Sequence[Placed], scoring: Scoring) -> Tensor:
    """`attend` as one softmax over all logits: with gradients, and slow. The tests compare the tiles with it."""
    group = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = torch.full((*q.shape[:3], k.shape[2]), float("-inf"), dtype=wide, device=q.device)
    for band in placed:
        turned = scoring.layout.turn(q, *band.query)
        keys = k if band.key is None else scoring.layout.turn(k, *band.key)
        scores = (turned @ keys.repeat_interleave(group, 1).mT).to(wide) * scoring.scale
        bias = scoring.bias(band)
        if bias is not None:
            scores = scores + bias[..., None].to(wide)
        logits = torch.where(band.mask(slice(None), slice(0, k.shape[2])), scores, logits)
    nothing = logits.isneginf().all(-1, keepdim=True)
    weights = torch.where(nothing, 0.0, torch.where(nothing, 0.0, logits).softmax(-1))
    return weights.to(v.dtype) @ v.repeat_interleave(group, 1)


@dataclass(frozen=True, eq=False)
class _Keys:
    """The keys of a band at their places.

    Arguments:
        band: the band.
        k, v: its columns, from column `offset` on.
    """

    band: Placed
    k: Tensor
    v: Tensor
    offset: int

    @classmethod
    def of(cls, k: Tensor, v: Tensor, band: Placed, layout: Layout) -> _Keys:
        if band.key is None:
            return cls(band, k, v, 0)
        every = band.tile(slice(0, band.low.shape[1]))
        if every is None:
            return cls(band, k[:, :, :0], v[:, :, :0], 0)
        columns = slice(every.start, every.stop)
        turned = layout.turn(k[:, :, columns], *band.turn_of(columns))
        return cls(band, turned, v[:, :, columns], columns.start)

    def pieces(self, q: Tensor, rows: slice, scoring: Scoring) -> Iterator[tuple[Tensor, Tensor]]:
        """Results of a tile of queries: of the columns that all of them see, and of those at the edges."""
        band = self.band
        tile = band.tile(rows)
        if tile is None:
            return
        cos, sin = band.query
        turned = scoring.layout.turn(q, cos[:, :, rows], sin[:, :, rows])
        bias = scoring.bias(band, rows)
        edges = (tile.start, tile.first, True), (tile.first, tile.last, False), (tile.last, tile.stop, True)
        for first, last, masked in edges:
            if first >= last:
                continue
            mask = band.mask(rows, slice(first, last)) if masked else None
            own = slice(first - self.offset, last - self.offset)
            output, lse = with_lse(turned, self.k[:, :, own], self.v[:, :, own], mask, scoring.scale)
            yield output, lse if bias is None else lse + bias
