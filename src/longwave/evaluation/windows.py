"""Which windows of a token stream are read, and which of their tokens are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

DEFAULT_WINDOWS = 64


@dataclass(frozen=True)
class Windows:
    """Windows of one length: window w is stream[end_w - length : end_w], its last `scored_w` tokens count.

    Arguments:
        length: tokens of a window, all of them context.
        ends: exclusive end of each window in the stream, ascending.
        scored: how many tokens at the end of each window are scored.
    """

    length: int
    ends: tuple[int, ...]
    scored: tuple[int, ...]

    def batches(self, tokens_per_batch: int) -> list[slice]:
        """Runs of windows that score as many tokens each, at most `tokens_per_batch` tokens together, or one."""
        size = rows_per_batch(tokens_per_batch, self.length)
        cuts = [0]
        for w in range(1, len(self.ends) + 1):
            if w == len(self.ends) or w - cuts[-1] == size or self.scored[w] != self.scored[w - 1]:
                cuts.append(w)
        return [slice(a, b) for a, b in pairwise(cuts)]


def rows_per_batch(tokens_per_batch: int, length: int) -> int:
    """How many rows of `length` tokens are read at a time: what fits, or one."""
    if tokens_per_batch < 1:
        raise ValueError(f"tokens per batch must be at least 1, got {tokens_per_batch}.")
    return max(1, tokens_per_batch // length)


def same_targets(tokens: int, lengths: Sequence[int], windows: int | None, targets: int, stride: int) -> list[Windows]:
    """Every context length ends at the same places, spread evenly; the last `targets` tokens are scored.

    Columns of a table are then about the same tokens, so that only the context differs between them. No token
    is scored twice; contexts of neighbouring windows may overlap.
    """
    longest = max(lengths)
    if min(lengths) <= targets:
        raise ValueError(
            f"the shortest length ({min(lengths)} tokens) must exceed the {targets} targets scored in it. "
            "Lower --targets or drop that length."
        )
    fit = (tokens - longest) // targets + 1 if tokens >= longest else 0
    count = _count(windows, fit, tokens, longest)
    room = tokens - longest
    ends = tuple(longest + (room * w // (count - 1) if count > 1 else room // 2) for w in range(count))
    return [Windows(length, ends, (targets,) * count) for length in lengths]


def strided(tokens: int, lengths: Sequence[int], windows: int | None, targets: int, stride: int) -> list[Windows]:
    """Windows every `stride` tokens; each scores its last `stride` tokens, the very first all but one.

    Where fewer windows are asked for than fit, an even selection is read.
    Source: Press et al., Shortformer (arXiv 2012.15832); protocol of Position Interpolation (2306.15595).
    """
    plans = []
    for length in lengths:
        ends = _grid(tokens, length, windows, stride)
        scored = tuple(length - 1 if end == length else min(stride, length - 1) for end in ends)
        plans.append(Windows(length, ends, scored))
    return plans


def overlapping(tokens: int, lengths: Sequence[int], windows: int | None, targets: int, stride: int) -> list[Windows]:
    """Windows every `stride` tokens, each scored whole: the mean is over short and long contexts alike.

    Source: LongLoRA (arXiv 2309.12307), LCEG (arXiv 2409.12181).
    """
    plans = []
    for length in lengths:
        ends = _grid(tokens, length, windows, stride)
        plans.append(Windows(length, ends, (length - 1,) * len(ends)))
    return plans


Plan = Callable[[int, Sequence[int], int | None, int, int], list[Windows]]
PROTOCOLS: dict[str, Plan] = {"same-targets": same_targets, "stride": strided, "overlap": overlapping}


def plan(
    protocol: str, tokens: int, lengths: Sequence[int], *, windows: int | None, targets: int, stride: int
) -> list[Windows]:
    """The windows of each length under a protocol by name.

    Arguments:
        tokens: length of the stream.
        windows: how many, None for 64 or as many as fit if that is fewer, 0 for all that fit.

    Raises:
        ValueError: for an unknown protocol, or if the stream is too short for the lengths or windows.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}. Available: {', '.join(PROTOCOLS)}.")
    for name, value in (("targets", targets), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if windows is not None and windows < 0:
        raise ValueError(f"windows must be at least 1 (or 0 for all that fit), got {windows}.")
    return PROTOCOLS[protocol](tokens, lengths, windows, targets, stride)


def _grid(tokens: int, length: int, windows: int | None, stride: int) -> tuple[int, ...]:
    fit = (tokens - length) // stride + 1 if tokens >= length else 0
    count = _count(windows, fit, tokens, length)
    return tuple(length + stride * ((fit - 1) * w // (count - 1) if count > 1 else 0) for w in range(count))


def _count(windows: int | None, fit: int, tokens: int, length: int) -> int:
    if fit < 1:
        raise ValueError(
            f"the data has {tokens} tokens, fewer than one window of {length}. Use more data or shorter lengths."
        )
    if windows is None:
        return min(DEFAULT_WINDOWS, fit)
    if windows > fit:
        raise ValueError(
            f"the data has {tokens} tokens: at length {length} that is room for {fit} windows, not {windows}. "
            f"Use more data or at most {fit} windows."
        )
    return windows or fit
