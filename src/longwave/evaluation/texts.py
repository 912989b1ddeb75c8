"""Stretches of the user's documents, as text and as tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from longwave.evaluation.keytokens import check_fast
from longwave.evaluation.windows import Windows, plan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # start and end, in characters
NOTHING = (-1, -1)  # what an end-of-text token covers


@dataclass(eq=False)
class Texts:
    """Stretches of documents, as tokens of a stream and as text.

    Arguments:
        tokenizer: the tokenizer that made the stream.
        documents: with one column, `text`.
        tokens: all of them as one stream, see `longwave.data.tokens.stream_and_starts`.
        starts: where each document starts in it.
    """

    tokenizer: PreTrainedTokenizerBase
    documents: Dataset
    tokens: Tensor
    starts: Sequence[int]
    _offsets: tuple[int, list[Span]] = field(default=(-1, []), init=False, repr=False)

    def __post_init__(self) -> None:
        check_fast(self.tokenizer)

    def plan(self, lengths: Sequence[int], windows: int | None) -> list[Windows]:
        """The windows of each length n.

        The documents are cut into stretches of the longest n. A window is the first n tokens of a stretch, so every n
        has windows of the same stretches.
        """
        sizes = [end - start for start, end in pairwise([*self.starts, len(self.tokens)])]
        longest = max(lengths)
        places = [
            start + longest * number
            for start, size in zip(self.starts, sizes, strict=True)
            for number in range(max(1, size // longest))
        ]
        return plan("truncate", len(self.tokens), lengths, windows=windows, targets=1, stride=1, documents=places)

    def text(self, start: int, end: int) -> tuple[str, list[Span]]:
        """The text of tokens start <= i < end of the stream, and for each token the characters that it covers."""
        number = bisect_right(self.starts, start) - 1
        if self._offsets[0] != number:
            self._offsets = number, self._read(number)
        first = self.starts[number]
        found = self._offsets[1][start - first : end - first]
        begin, stop = found[0][0], max(stop for _, stop in found)
        text = self.documents[number]["text"][begin:stop]
        return text, [(a - begin, b - begin) if b >= 0 else NOTHING for a, b in found]

    def _read(self, number: int) -> list[Span]:
        text = self.documents[number]["text"]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [*encoded["offset_mapping"], NOTHING]
