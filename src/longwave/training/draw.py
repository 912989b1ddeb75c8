"""What is drawn for a micro-batch: its kind, its length factor, and where its tokens are said to stand.

A window of n tokens is spread over positions 0 ... ⌊tL⌋ - 1, so that a model trained on n tokens at
a time meets every distance up to t times its pre-trained length L. All rows of a
micro-batch have one t, and each row has its own positions. Both come from one generator, seeded by
counters: draw k of a run is the same whether or not the run was interrupted before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from longwave.schedule import tokens_at


def chunks(rows: int, length: int, limit: int, generator: Generator, count: int) -> Tensor:
    """`count` contiguous chunks, each moved right by a gap: 0 <= gap_1 <= ... <= limit - length.

    Chunk borders and gaps are uniform draws, sorted. PoSE draws every gap from the gap before. For
    two chunks this is the same. With more chunks PoSE's later gaps would shrink geometrically.
    Neighbouring tokens stay neighbours, as language modelling needs.

    Source: PoSE (arXiv 2309.10400).
    """
    count = min(count, length)
    borders = torch.stack([torch.randperm(length - 1, generator=generator)[: count - 1] + 1 for _ in range(rows)])
    gaps = torch.randint(0, limit - length + 1, (rows, count - 1), generator=generator).sort().values
    chunk = torch.searchsorted(borders.sort().values, torch.arange(length).repeat(rows, 1), right=True)
    offsets = torch.cat([torch.zeros(rows, 1, dtype=torch.long), gaps], dim=1)
    return torch.arange(length) + offsets.gather(1, chunk)


def random(rows: int, length: int, limit: int, generator: Generator, count: int) -> Tensor:
    """A sorted sample without replacement, both ends pinned ("position extrapolation").

    Source: CLEX, section 3.2 (arXiv 2310.16450); RandomPos (arXiv 2305.16843).
    """
    if length < 2:
        return torch.zeros(rows, length, dtype=torch.long)
    inner = torch.stack([torch.randperm(limit - 2, generator=generator)[: length - 2] + 1 for _ in range(rows)])
    first, last = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), limit - 1)
    return torch.cat([first, inner.sort().values, last], dim=1)


def uniform(rows: int, length: int, limit: int, generator: Generator, count: int) -> Tensor:
    """Equally spaced: position i is ⌊i (limit - 1)/(length - 1)⌋."""
    return (torch.arange(length) * (limit - 1) // max(length - 1, 1)).repeat(rows, 1)


def none(rows: int, length: int, limit: int, generator: Generator, count: int = 1) -> Tensor:
    """0 ... length - 1: an ordinary window."""
    return torch.arange(length).repeat(rows, 1)


# (rows, length, limit, generator, chunk count) -> int64 [rows, length], strictly increasing, < limit
POSITIONS: dict[str, Callable[[int, int, int, Generator, int], Tensor]] = {
    "chunks": chunks,
    "random": random,
    "uniform": uniform,
    "none": none,
}


def log_uniform(maximum: float, generator: Generator) -> float:
    """t = maximum^v with v uniform in [0, 1): every octave of lengths equally often."""
    return math.exp(torch.rand((), generator=generator, dtype=torch.float64).item() * math.log(maximum))


def integer(maximum: float, generator: Generator) -> float:
    """t uniform in {1, ..., ⌊maximum⌋}, as in the published CLEX."""
    return float(torch.randint(1, math.floor(maximum) + 1, (), generator=generator).item())


def fixed(maximum: float, generator: Generator) -> float:
    """t = maximum, always."""
    return float(maximum)


FACTORS: dict[str, Callable[[float, Generator], float]] = {
    "log-uniform": log_uniform,
    "integer": integer,
    "fixed": fixed,
}


def counter_generator(*counters: int | str) -> Generator:
    """A generator whose seed is a hash of `counters`: it needs no state to be saved and no draws to be skipped."""
    digest = hashlib.sha256(repr(counters).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Draw:
    """What was drawn for a micro-batch.

    Arguments:
        t: the length factor.
        positions: position ids, int64 [rows, tokens], on the CPU.
    """

    t: float
    positions: Tensor


@dataclass(frozen=True)
class LengthSampler:
    """Draws (t, position ids) for a micro-batch.

    A drawn t may be too small for the window. It is then raised to n/L (by `integer` to the next whole
    number), so that positions always fit: 0 <= p < max(n, ⌊tL⌋), whether or not n is a multiple of L.

    Arguments:
        original_length: L in tokens.
        max_factor: the largest t to draw.
        positions: a key of POSITIONS.
        factors: a key of FACTORS.
        chunks: number of chunks, for `positions="chunks"`.
        short_share: share of micro-batches without gaps, at the smallest t for the window: 1 up to L, as in
            pre-training, else n/L, by `integer` its ceiling.
        long_share: share of micro-batches that are real windows without gaps. A real window is m times as long, in m
            times fewer rows, for an m that divides the rows. Only real windows show the weights and the field how
            dense a long context is.
        seed: of every draw.
    """

    original_length: int
    max_factor: float
    positions: str = "chunks"
    factors: str = "log-uniform"
    chunks: int = 2
    short_share: float = 0.0
    long_share: float = 0.0
    seed: int = 0

    def multiples(self, rows: int, length: int) -> list[int]:
        """The multiples m that a real window can have: max_factor allows m, and m divides the batch.

        A batch of real windows then has as many tokens as any batch, and no row is left over.
        """
        most = min(rows, tokens_at(self.max_factor, self.original_length) // length)
        return [multiple for multiple in range(2, most + 1) if rows % multiple == 0]

    def __call__(
        self, rows: int, length: int, *, step: int, micro_batch: int = 0, rank: int = 0
    ) -> tuple[float, Tensor]:
        """t and int64 position ids of one micro-batch of `length`-token rows: [rows, length].

        For real long windows the shape is [rows/m, m·length]: the caller takes rows/m longer rows instead.

        Raises:
            ValueError: if the window does not fit into max_factor times L, or if no longer window fits.
        """
        self.check(rows, length)
        least = max(1.0, length / self.original_length)
        if self.factors == "integer":
            least = min(float(math.ceil(least)), self.max_factor)
        generator = counter_generator(self.seed, step, micro_batch, rank)
        kind = torch.rand((), generator=generator).item()
        if kind < self.short_share:
            return least, none(rows, length, length, generator)
        if kind < self.short_share + self.long_share:
            return self._long(rows, length, generator)
        t = max(FACTORS[self.factors](self.max_factor, generator), least)
        limit = max(length, tokens_at(t, self.original_length))
        return t, POSITIONS[self.positions](rows, length, limit, generator, self.chunks)

    def _long(self, rows: int, length: int, generator: Generator) -> tuple[float, Tensor]:
        multiples = self.multiples(rows, length)
        multiple = multiples[int(torch.randint(len(multiples), (), generator=generator))]
        t = max(1.0, multiple * length / self.original_length)
        t = min(float(math.ceil(t)), self.max_factor) if self.factors == "integer" else t
        return t, none(rows // multiple, multiple * length, multiple * length, generator)

    def check(self, rows: int, length: int) -> None:
        """A `ValueError` if windows of `length` tokens do not fit, or no longer window does that is asked for."""
        least = max(1.0, length / self.original_length)
        if least > self.max_factor:
            raise ValueError(
                f"a training window of {length} tokens is {least:.4g} times the original length "
                f"{self.original_length}, beyond the largest factor {self.max_factor:g}. Raise it, or train shorter."
            )
        if self.long_share and not self.multiples(rows, length):
            smallest = next((multiple for multiple in range(2, rows + 1) if rows % multiple == 0), 2)
            raise ValueError(
                f"long share needs room for a window of {smallest} x {length} tokens: a batch size of at least 2 (got "
                f"{rows}) and {self.max_factor:g} x {self.original_length} positions. Raise them, take a batch size "
                "with a smaller divisor, or set long share to 0."
            )
