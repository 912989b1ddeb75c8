"""What is drawn for a micro-batch: its kind, its length factor, and where its tokens are said to stand.

A row of n tokens is spread over positions 0 ... ⌊tL⌋ - 1, so that a model trained on n tokens at
a time meets every distance up to t times its pre-trained length L. Some micro-batches are real windows instead: m
rows of text in one, without gaps. Each row has its own positions. Kind, t and positions come from generators that are
seeded by counters: a draw of a run is the same whether or not the run was interrupted before.

Two counters decide: the optimizer step, and the place of the micro-batch among all micro-batches of the step, those of
other processes included. Kind and t are drawn for the step, positions and text for the micro-batch. The reasons:

- Processes wait for each other in each backward pass. A long window in one process would stop all others, so the
  micro-batches that run at the same time need one kind and one window length.
- What a forward computes depends on t: within L the LoRA and the far band are left out. ZeRO and FSDP gather the
  weights of a layer in all processes at once. A process that leaves a layer out would stop all others for ever.
- 1 process with 4 micro-batches, 2 with 2, and 4 with 1 are to be one run. Which micro-batches run at the same time
  depends on that layout: with 4 processes it is all 4. Only what is the same for the whole step is the same for
  micro-batches that run at the same time, in every layout.

Neither the rank nor the number of micro-batches of one process takes part.
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


def log_uniform(maximum: float, generator: Generator, least: float = 1.0) -> float:
    """t = least·(maximum/least)^v with v uniform in [0, 1): every octave of lengths equally often."""
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return least * math.exp(share * math.log(maximum / least))


def integer(maximum: float, generator: Generator, least: float = 1.0) -> float:
    """t uniform in {⌈least⌉, ..., ⌊maximum⌋}; from 1 on as in the published CLEX."""
    return float(torch.randint(math.ceil(least), math.floor(maximum) + 1, (), generator=generator).item())


def fixed(maximum: float, generator: Generator, least: float = 1.0) -> float:
    """t = maximum, always."""
    return float(maximum)


# (largest t, generator, smallest t) -> t
FACTORS: dict[str, Callable[[float, Generator, float], float]] = {
    "log-uniform": log_uniform,
    "integer": integer,
    "fixed": fixed,
}


# Of the draws of a run, in its record. 1 drew kind and t for each (step, micro-batch, rank). The draws of both are the
# same where a step has one micro-batch.
VERSION = 2


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
        number: of the micro-batch in the run.
    """

    t: float
    positions: Tensor
    number: int = 0


@dataclass(frozen=True)
class LengthSampler:
    """Draws (t, position ids) for a micro-batch.

    A drawn t may be too small for the row. It is then raised to n/L (by `integer` to the next whole
    number), so that positions always fit: 0 <= p < max(n, ⌊tL⌋), whether or not n is a multiple of L.

    Arguments:
        original_length: L in tokens.
        max_factor: the largest t to draw.
        positions: a key of POSITIONS.
        factors: a key of FACTORS.
        chunks: number of chunks, for `positions="chunks"`.
        short_share: share of micro-batches of rows without gaps, at the smallest t for the row: 1 up to L, as in
            pre-training, else n/L, by `integer` its ceiling.
        long_share: share of micro-batches that are real windows without gaps. A real window is m times as long as a
            row, in m times fewer rows, see `multiples`. Only real windows show the weights and the field how
            dense a long context is.
        train_length: tokens of the longest real window; None for max_factor times L.
        least_factor: the smallest t to draw for rows whose positions skip.
        seed: of every draw.
    """

    original_length: int
    max_factor: float
    positions: str = "chunks"
    factors: str = "log-uniform"
    chunks: int = 2
    short_share: float = 0.0
    long_share: float = 0.0
    train_length: int | None = None
    least_factor: float = 1.0
    seed: int = 0

    def multiples(self, rows: int, length: int) -> list[int]:
        """The multiples m that a real window can have: it is within train_length and max_factor, and m divides `rows`.

        A batch of real windows then has as many tokens as any batch, and no row is left over. A single row (m = 1) is
        such a window only if it is longer than L: up to L it would be a short window, which has a share of its own.
        """
        longest = tokens_at(self.max_factor, self.original_length)
        most = min(rows, min(longest, self.train_length or longest) // length)
        least = 1 if length > self.original_length else 2
        return [multiple for multiple in range(least, most + 1) if rows % multiple == 0]

    def __call__(self, rows: int, length: int, *, step: int, place: int = 0) -> tuple[float, Tensor]:
        """t and int64 position ids of one micro-batch of `length`-token rows: [rows, length].

        For real long windows the shape is [rows/m, m·length]: the caller takes rows/m longer rows instead.

        Arguments:
            step: optimizer step, from 0. All its micro-batches have one kind and one t.
            place: of the micro-batch among those of the step, in all processes.

        Raises:
            ValueError: if the row does not fit into max_factor times L, or if no real window fits.
        """
        own = counter_generator(self.seed, "positions", step, place) if place else None
        return self.draw(rows, length, self._of_step(step), own)

    def draw(self, rows: int, length: int, generator: Generator, own: Generator | None = None) -> tuple[float, Tensor]:
        """As a call: kind and t from `generator`, then positions from `own`, by default from the same generator."""
        self.check(rows, length)
        multiple = self._multiple(rows, length, generator)
        window = length * (multiple or 1)
        least = max(1.0, window / self.original_length)
        if self.factors == "integer":
            least = min(float(math.ceil(least)), self.max_factor)
        if multiple:
            return least, none(rows // multiple, window, window, generator)
        t = max(FACTORS[self.factors](self.max_factor, generator, self.least_factor), least)
        limit = max(length, tokens_at(t, self.original_length))
        return t, POSITIONS[self.positions](rows, length, limit, own or generator, self.chunks)

    def window(self, rows: int, length: int, *, step: int) -> int:
        """Real tokens of a row of the micro-batches that `__call__` draws for the same step."""
        return length * (self._multiple(rows, length, self._of_step(step)) or 1)

    def _of_step(self, step: int) -> Generator:
        return counter_generator(self.seed, step, 0, 0)  # as draws of version 1 for one process and one micro-batch

    def is_short(self, *, step: int) -> bool:
        """Whether the micro-batches of a step are of rows without gaps, of `short_share`."""
        return torch.rand((), generator=self._of_step(step)).item() < self.short_share

    def _multiple(self, rows: int, length: int, generator: Generator) -> int:
        """How many rows of text a real window takes; 0 for rows whose positions skip."""
        kind = torch.rand((), generator=generator).item()
        if kind < self.short_share:
            return 1
        if kind < self.short_share + self.long_share:
            multiples = self.multiples(rows, length)
            return multiples[int(torch.randint(len(multiples), (), generator=generator))]
        return 0

    def check(self, rows: int, length: int) -> None:
        """A `ValueError` if rows of `length` tokens do not fit, or a real window or t that is asked for does not."""
        longest = max(length, self.train_length or length)
        least = max(1.0, longest / self.original_length)
        if least > self.max_factor:
            raise ValueError(
                f"a training window of {longest} tokens is {least:.4g} times the original length "
                f"{self.original_length}, beyond the largest factor {self.max_factor:g}. Raise it, or train shorter."
            )
        smallest = math.ceil(self.least_factor) if self.factors == "integer" else self.least_factor
        if smallest > self.max_factor:
            raise ValueError(
                f"least factor {self.least_factor:g} leaves no factor to draw: the largest one is {self.max_factor:g}. "
                "Lower the least factor."
            )
        if self.long_share and not self.multiples(rows, length):
            divisor = next((multiple for multiple in range(2, rows + 1) if rows % multiple == 0), 2)
            if self.train_length and self.train_length < divisor * length:
                raise ValueError(
                    f"long share cuts real windows of at least {divisor} x {length} tokens, and train length, the "
                    f"longest real window, is {self.train_length}. Pass train length {divisor * length} or more with "
                    f"row length {length}, or set long share to 0."
                )
            raise ValueError(
                f"long share needs room for a window of {divisor} x {length} tokens: a batch size of at least 2 (got "
                f"{rows}) and {self.max_factor:g} x {self.original_length} positions. Raise them, take a batch size "
                "with a smaller divisor, or set long share to 0."
            )
