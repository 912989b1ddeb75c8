"""Which windows of a token stream are read, and which of their tokens are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

DEFAULT_WINDOWS = 64
TOKENS_PER_BATCH = 8192
DEFAULT_CHUNK = 4096  # of the official CLEX evaluation


@dataclass(frozen=True)
class Windows:
    """Windows of one length: window w is stream[end_w - length : end_w].

    Arguments:
        length: tokens of a window.
        ends: exclusive end of each window in the stream, ascending.
        scored: how many tokens of each window are scored. They are its last tokens; in a window that is read in chunks,
            they are all tokens but the first of each chunk.
        chunk: tokens of a chunk; None for a window that is read at once.
    """

    length: int
    ends: tuple[int, ...]
    scored: tuple[int, ...]
    chunk: int | None = None

    def positions(self) -> list[int]:
        """Places of the scored tokens in a window, from 0, under a protocol that scores windows whole."""
        return [place for place in range(1, self.length) if place % (self.chunk or self.length)]

    def batches(self, tokens_per_batch: int) -> list[slice]:
        """Slices of the windows that are read together.

        The windows of a batch score equally many tokens each. A batch has at most `tokens_per_batch` tokens, or one
        window if that is longer.
        """
        size = rows_per_batch(tokens_per_batch, self.length)
        cuts = [0]
        for w in range(1, len(self.ends) + 1):
            if w == len(self.ends) or w - cuts[-1] == size or self.scored[w] != self.scored[w - 1]:
                cuts.append(w)
        return [slice(a, b) for a, b in pairwise(cuts)]


def check_batch(tokens_per_batch: int) -> None:
    """Refuse a batch without tokens."""
    if tokens_per_batch < 1:
        raise ValueError(f"tokens per batch must be at least 1, got {tokens_per_batch}.")


def rows_per_batch(tokens_per_batch: int, length: int) -> int:
    """How many rows of `length` tokens are read at a time: what fits, or one."""
    check_batch(tokens_per_batch)
    return max(1, tokens_per_batch // length)


@dataclass(frozen=True)
class Wanted:
    """The arguments of `plan` that a protocol may need; each protocol reads its own."""

    windows: int | None
    targets: int
    stride: int
    chunk: int
    documents: tuple[int, ...] | None


def same_targets(tokens: int, lengths: Sequence[int], wanted: Wanted) -> list[Windows]:
    """Every context length ends at the same places, spread evenly; the last `targets` tokens are scored.

    The columns of a table are then about the same tokens, and only the context differs between them. No token is
    scored twice. The contexts of neighbouring windows may overlap.
    """
    longest, targets = max(lengths), wanted.targets
    if min(lengths) <= targets:
        raise ValueError(
            f"the shortest length ({min(lengths)} tokens) must exceed the {targets} targets scored in it. "
            "Lower --targets or drop that length."
        )
    room = tokens - longest
    count = _count_in_stream(wanted.windows, room // targets + 1, tokens, longest)
    ends = tuple(longest + (room * w // (count - 1) if count > 1 else room // 2) for w in range(count))
    return [Windows(length, ends, (targets,) * count) for length in lengths]


def strided(tokens: int, lengths: Sequence[int], wanted: Wanted) -> list[Windows]:
    """Windows every `stride` tokens. Each scores its last `stride` tokens, the first window all tokens but one.

    If fewer windows are asked for than fit, they are spread evenly.
    Source: Press et al., Shortformer (arXiv 2012.15832); protocol of Position Interpolation (2306.15595).
    """
    plans = []
    for length in lengths:
        ends = _grid(tokens, length, wanted.windows, wanted.stride)
        scored = tuple(length - 1 if end == length else min(wanted.stride, length - 1) for end in ends)
        plans.append(Windows(length, ends, scored))
    return plans


def overlapping(tokens: int, lengths: Sequence[int], wanted: Wanted) -> list[Windows]:
    """Windows every `stride` tokens, each scored whole: tokens with a short and with a long context count alike.

    Source: LongLoRA (arXiv 2309.12307), LCEG (arXiv 2409.12181).
    """
    plans = []
    for length in lengths:
        ends = _grid(tokens, length, wanted.windows, wanted.stride)
        plans.append(Windows(length, ends, (length - 1,) * len(ends)))
    return plans


def truncated(tokens: int, lengths: Sequence[int], wanted: Wanted) -> list[Windows]:
    """The first n tokens of each document, scored whole. Every n has the same documents: those that hold the longest n.

    If fewer windows are asked for than there are such documents, they are spread evenly.
    Source: YaRN (arXiv 2309.00071), on Proof-pile.
    """
    if wanted.documents is None:
        raise ValueError("protocol truncate needs to know where documents start. Pass documents=[0, ...].")
    longest = max(lengths)
    sizes = [end - start for start, end in pairwise([*wanted.documents, tokens])]
    fit = [start for start, size in zip(wanted.documents, sizes, strict=True) if size >= longest]
    if not fit:
        raise ValueError(
            f"none of the {len(sizes)} documents has {longest} tokens, the longest has {max(sizes, default=0)}. "
            "Use longer documents or shorter lengths."
        )
    found = f"the data has {len(fit)} documents of {longest} tokens and more:"
    starts = _even(fit, _count(wanted.windows, len(fit), found))
    return [
        Windows(length, tuple(start + length for start in starts), (length - 1,) * len(starts)) for length in lengths
    ]


def chunked(tokens: int, lengths: Sequence[int], wanted: Wanted) -> list[Windows]:
    """Windows one after another, read in chunks through a cache. All tokens but the first of each chunk are scored.

    The first token of a chunk would be predicted by the chunk before; the official evaluation takes the loss of each
    chunk alone. If fewer windows are asked for than fit, they are spread evenly.
    Source: `calculate_perplexity` in github.com/DAMO-NLP-SG/CLEX.
    """
    if wanted.chunk < 2:
        raise ValueError(f"chunk must be at least 2 tokens, got {wanted.chunk}.")
    plans = []
    for length in lengths:
        ends = _grid(tokens, length, wanted.windows, length)
        scored = length - -(-length // wanted.chunk)
        plans.append(Windows(length, ends, (scored,) * len(ends), wanted.chunk))
    return plans


PROTOCOLS: dict[str, Callable[[int, Sequence[int], Wanted], list[Windows]]] = {
    "same-targets": same_targets,
    "stride": strided,
    "overlap": overlapping,
    "truncate": truncated,
    "chunked-cache": chunked,
}
WHOLE = ("overlap", "truncate", "chunked-cache")  # score windows whole, and so have a loss by position


def scores_same_targets(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a record say that every length scores the same tokens."""
    return settings.get("protocol") == "same-targets"


def in_words(settings: Mapping[str, Any]) -> str:
    """The protocol that the settings of a record name, in words."""
    protocol = settings["protocol"]
    if protocol == "same-targets":
        return f"last {settings['targets']} tokens"
    if protocol == "truncate":
        return "starts of documents"
    if protocol == "chunked-cache":
        return f"chunks of {settings.get('chunk')} tokens through a cache"
    return f"protocol {protocol} every {settings['stride']} tokens"


def plan(
    protocol: str,
    tokens: int,
    lengths: Sequence[int],
    *,
    windows: int | None,
    targets: int,
    stride: int,
    chunk: int = DEFAULT_CHUNK,
    documents: Sequence[int] | None = None,
) -> list[Windows]:
    """The windows of each length under a protocol by name.

    Arguments:
        tokens: length of the stream.
        windows: how many, None for 64 or as many as fit if that is fewer, 0 for all that fit.
        targets: tokens scored at the end of a window, by `same-targets`.
        stride: tokens from one window to the next, in `stride` and `overlap`.
        chunk: tokens of a chunk, in `chunked-cache`.
        documents: where each document starts in the stream, ascending; for `truncate`.

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
    starts = None if documents is None else tuple(documents)
    if starts and (starts[0] < 0 or starts[-1] > tokens or any(b < a for a, b in pairwise(starts))):
        raise ValueError(
            f"documents must be ascending places in a stream of {tokens} tokens. See data.tokens.stream_and_starts."
        )
    return PROTOCOLS[protocol](tokens, lengths, Wanted(windows, targets, stride, chunk, starts))


def chunk_of(chunk: int | None, original_length: int) -> int:
    """The tokens of a chunk. None stands for those of the official evaluation, or L if that is less."""
    return min(DEFAULT_CHUNK, original_length) if chunk is None else chunk


def check_stretches(count: int, protocol: str, lengths: Sequence[int]) -> None:
    """Refuse a loss by position that the protocol does not have, or with a stretch in which nothing is scored."""
    if count and protocol not in WHOLE:
        raise ValueError(f"protocol {protocol} has no loss by position. Choose one of {', '.join(WHOLE)}.")
    if not 0 <= count <= min(lengths) // 2:
        raise ValueError(
            f"by_position must be 0 to {min(lengths) // 2}, half of the shortest length, got {count}. "
            "Ask for fewer stretches or longer windows."
        )


def _grid(tokens: int, length: int, windows: int | None, stride: int) -> tuple[int, ...]:
    fit = (tokens - length) // stride + 1
    return tuple(length + stride * place for place in _even(range(fit), _count_in_stream(windows, fit, tokens, length)))


def _even(places: Sequence[int], count: int) -> list[int]:
    """`count` of the places, spread evenly from the first to the last."""
    return [places[(len(places) - 1) * w // (count - 1) if count > 1 else 0] for w in range(count)]


def _count_in_stream(windows: int | None, fit: int, tokens: int, length: int) -> int:
    if tokens < length:
        raise ValueError(
            f"the data has {tokens} tokens, fewer than one window of {length}. Use more data or shorter lengths."
        )
    return _count(windows, fit, f"the data has {tokens} tokens: at length {length}")


def _count(windows: int | None, fit: int, found: str) -> int:
    if windows is None:
        return min(DEFAULT_WINDOWS, fit)
    if windows > fit:
        raise ValueError(
            f"{found} that is room for {fit} windows, not {windows}. Use more data or at most {fit} windows."
        )
    return windows or fit
