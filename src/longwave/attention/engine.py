"""One softmax over all bands of a query: tiles of queries, a kernel for each band, and the merge of their results.

A kernel returns o_b and the log-sum-exp lse_b of a band's logits. The softmax over all bands is then exactly

    o = Σ_b w_b·o_b,    w_b = exp(lse_b - lse),    lse = ln Σ_b exp(lse_b).

Mass is a number that is added to all logits of a band, and so to its lse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from longwave.attention.kernels import with_lse
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed

TILE = 256  # queries that share a kernel call


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    placed: Sequence[Placed],
    *,
    layout: Layout,
    scale: float,
    mass: float | Tensor = 0.0,
    tile: int = TILE,
) -> Tensor:
    """softmax(logits) v over all bands.

    With gradients one dense tile of all bands is made (`dense`), which needs memory for n x m logits of every head.

    Arguments:
        q: [B, H, n, D]; k, v: [B, H_kv, m, D]; head h reads the keys of head ⌊h/(H/H_kv)⌋.
        placed: the bands of this forward.
        layout: which dimensions are turned.
        scale: of all logits, 1/√D mostly.
        mass: β: the logits of a band get -β·ln(max(1, keys/room)), a number or [H].
        tile: queries of a kernel call.

    Returns:
        [B, H, n, D], 0 for a query without keys.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        return dense(q, k, v, placed, layout=layout, scale=scale, mass=mass)
    keys = [_keys(k, band, layout) for band in placed]
    output = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
    for start in range(0, q.shape[2], tile):
        rows = slice(start, min(start + tile, q.shape[2]))
        parts = [
            part
            for band, (turned, offset) in zip(placed, keys, strict=True)
            for part in _pieces(q[:, :, rows], turned, offset, v, band, rows, layout, scale, mass)
        ]
        output[:, :, rows] = merge(parts)
    return output


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """One softmax from the outputs [B, H, n, D] and log-sum-exps [B, H, n] of its parts."""
    if len(parts) == 1:
        return parts[0][0]
    total = torch.stack([lse for _, lse in parts]).logsumexp(0)
    total = torch.where(total.isneginf(), 0.0, total)
    weights = [(lse - total).exp()[..., None] for _, lse in parts]
    wide = weights[0].dtype
    return sum((output.to(wide) * weight for (output, _), weight in zip(parts, weights, strict=True))).to(parts[0][0].dtype)


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    placed: Sequence[Placed],
    *,
    layout: Layout,
    scale: float,
    mass: float | Tensor = 0.0,
) -> Tensor:
    """`attend` as one softmax over all logits: with gradients, and slow. The tests compare the tiles with it."""
    group = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = torch.full((*q.shape[:3], k.shape[2]), float("-inf"), dtype=wide, device=q.device)
    for band in placed:
        turned = layout.turn(q, *band.query)
        keys = k if band.key is None else layout.turn(k, *band.key)
        scores = (turned @ keys.repeat_interleave(group, 1).mT).to(wide) * scale
        if band.excess is not None:
            scores = scores - _weight(band, mass, slice(None))[..., None].to(wide)
        logits = torch.where(band.mask(slice(None), slice(0, k.shape[2])), scores, logits)
    nothing = logits.isneginf().all(-1, keepdim=True)
    weights = torch.where(nothing, 0.0, torch.where(nothing, 0.0, logits).softmax(-1))
    return weights.to(v.dtype) @ v.repeat_interleave(group, 1)


def _keys(k: Tensor, band: Placed, layout: Layout) -> tuple[Tensor, int]:
    """The keys of a band at their places, and the column of the first one."""
    if band.key is None:
        return k, 0
    seen = band.high > band.low
    if not bool(seen.any()):
        return k[:, :, :0], 0
    first, last = int(band.low[seen].min()), int(band.high[seen].max())
    cos, sin = band.key
    return layout.turn(k[:, :, first:last], cos[:, :, first:last], sin[:, :, first:last]), first


def _pieces(
    q: Tensor, k: Tensor, offset: int, v: Tensor, band: Placed, rows: slice, layout: Layout, scale: float, mass: float | Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Results of a tile in one band: of the columns that all its queries see, and of those at the edges."""
    low, high = band.low[:, rows], band.high[:, rows]
    empty = high <= low
    if bool(empty.all()):
        return
    cos, sin = band.query
    turned = layout.turn(q, cos[:, :, rows], sin[:, :, rows])
    start, stop = int(low[~empty].min()), int(high[~empty].max())
    inner = (0, 0) if bool(empty.any()) else (int(low.max()), int(high.min()))
    if inner[1] - inner[0] < TILE // 4 and (start, stop) != inner:
        inner = (stop, stop)
    for first, last, masked in ((start, inner[0], True), (*inner, False), (inner[1], stop, True)):
        if first >= last:
            continue
        mask = band.mask(rows, slice(first, last)) if masked else None
        output, lse = with_lse(turned, k[:, :, first - offset : last - offset], v[:, :, first:last], mask, scale)
        if band.excess is not None:
            lse = lse - _weight(band, mass, rows)
        yield output, lse


def _weight(band: Placed, mass: float | Tensor, rows: slice) -> Tensor:
    """β·excess, [B or 1, H or 1, n]."""
    assert band.excess is not None
    beta = mass.reshape(1, -1, 1) if isinstance(mass, Tensor) else mass
    return beta * band.excess[..., rows]
