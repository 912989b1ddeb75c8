"""Perplexity against context length, under a named protocol."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longwave.data.prompts import check_ids
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.loss import BLOCK_ELEMENTS, Scorer
from longwave.evaluation.statistics import Z95, Interval, mean_nll
from longwave.evaluation.windows import Windows, check_stretches, chunk_of, plan
from longwave.extensions.reach import check_lengths, fixed_length, original_length_of
from longwave.extensions.sites import host_of

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Stretch:
    """Loss of the tokens at places start <= p < end of all windows; a window starts at place 0.

    Arguments:
        start, end: places in tokens.
        nll: mean -ln p per scored token, in nats.
        tokens: how many were scored.
    """

    start: int
    end: int
    nll: float
    tokens: int


@dataclass(frozen=True)
class LengthLoss:
    """What was measured at one context length.

    Arguments:
        length: tokens of a window.
        factor: t the windows ran at, None for a model that is not extended.
        ends: exclusive end of each window in the token stream: the key for pairing results.
        nll: sum of -ln p over the scored tokens of each window, in nats.
        tokens: scored tokens of each window.
        by_position: the loss along the windows, empty where not asked for.
    """

    length: int
    factor: float | None
    ends: tuple[int, ...]
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    by_position: tuple[Stretch, ...] = ()

    @property
    def mean(self) -> float:
        """Mean -ln p per token, in nats."""
        return mean_nll(self.nll, self.tokens)[0]

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, windows being the sampling unit; NaN for a single window."""
        return mean_nll(self.nll, self.tokens)[1]

    @property
    def ppl(self) -> float:
        """exp(mean)."""
        return math.exp(self.mean)

    @property
    def interval(self) -> Interval:
        """95 % interval of the perplexity, exp(mean ± 1.96 se)."""
        mean, error = mean_nll(self.nll, self.tokens)
        return Interval(math.exp(mean), math.exp(mean - Z95 * error), math.exp(mean + Z95 * error))

    def to_json(self) -> dict[str, Any]:
        """One entry of `lengths` in a perplexity record, see docs/results-schema.md."""
        alone = len(self.nll) < 2  # no spread to speak of
        stretches = {"by_position": [asdict(stretch) for stretch in self.by_position]} if self.by_position else {}
        return {
            "length": self.length,
            "factor": self.factor,
            "windows": len(self.nll),
            "mean_nll": self.mean,
            "standard_error": None if alone else self.standard_error,
            "ppl": self.ppl,
            "interval": None if alone else [self.interval.low, self.interval.high],
            "ends": list(self.ends),
            "nll": list(self.nll),
            "tokens": list(self.tokens),
            **stretches,
        }


@dataclass(frozen=True)
class Perplexity:
    """Result of `perplexity`: one `LengthLoss` for each length asked for, in that order."""

    protocol: str
    original_length: int
    targets: int
    stride: int
    lengths: tuple[LengthLoss, ...]

    def __getitem__(self, length: int) -> LengthLoss:
        """The result at `length` tokens."""
        for entry in self.lengths:
            if entry.length == length:
                return entry
        measured = ", ".join(str(entry.length) for entry in self.lengths)
        raise KeyError(f"length {length} was not measured, only {measured}")


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    lengths: str | Iterable[int | str],
    *,
    protocol: str = "same-targets",
    windows: int | None = None,
    targets: int = 64,
    stride: int = 256,
    chunk: int | None = None,
    documents: Sequence[int] | None = None,
    by_position: int = 0,
    original_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    block_elements: int = BLOCK_ELEMENTS,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """How well a model predicts tokens when it reads n of them: exp of the mean -ln p(token | context).

    - `same-targets`: every n ends at the same, evenly spread places, and the last `targets` tokens are scored.
      Columns are about the same tokens, so they differ by the context only: for tables and plots.
    - `stride`: windows every `stride` tokens, each scores only what is new in it: for single numbers.
    - `overlap`: the same windows, each scored whole: to compare with LongLoRA and LCEG.
    - `truncate`: the first n tokens of each document, scored whole: to compare with YaRN.
    - `chunked-cache`: windows one after another, each read in chunks through a cache: only to compare with CLEX.

    A window runs at the t that the schedule gives its whole length, in the model's dtype with the loss in float32.
    It is one full forward without cache, of which logits exist in blocks only; `chunked-cache` holds those of a chunk.

    Arguments:
        model: a transformers causal LM, extended or not; put in eval mode for the while.
        tokens: the token stream, shape [tokens]; see `longwave.data.tokens.token_stream`.
        lengths: `"1x,2x,4096"` or a list: multiples of the original length, or tokens.
        windows: how many windows; None for 64 or what fits, 0 for all that fit.
        chunk: tokens of a chunk in `chunked-cache`; None for 4,096, or the original length if that is less.
        documents: where each document starts in `tokens`, for `truncate`; see `longwave.data.tokens.stream_and_starts`.
        by_position: in how many equal stretches of the window to report the loss, for protocols that score windows
            whole (`overlap`, `truncate`, `chunked-cache`); 0 for none.
        original_length: what `1x` means, default the model's own.
        tokens_per_batch: windows are batched up to that many tokens.
        block_elements: logits (rows x positions x vocabulary) computed at a time.
        progress: called after each batch with the number of tokens read.

    Raises:
        ValueError: for bad lengths, a length beyond the model's maximum, too little data, token ids
            that the model has no row for, or a loss that is not a finite number.

    Source: `stride` Press et al. (arXiv 2012.15832), `overlap` LongLoRA (2309.12307), `truncate` YaRN (2309.00071),
    `chunked-cache` github.com/DAMO-NLP-SG/CLEX.
    """
    original = original_length if original_length is not None else original_length_of(model)
    counts = parse_lengths(lengths, original)
    check_lengths(model, counts)
    plans = plan(
        protocol, tokens.numel(), counts, windows=windows, targets=targets, stride=stride,
        chunk=chunk_of(chunk, original), documents=documents,
    )  # fmt: skip
    check_stretches(by_position, protocol, counts)
    check_ids(tokens, model)
    if protocol == "chunked-cache":
        check_cache(model)
    scorer = Scorer(model, block_elements=block_elements)
    training = model.training
    model.eval()
    try:
        results = tuple(_at_length(model, scorer, tokens, p, by_position, tokens_per_batch, progress) for p in plans)
    finally:
        model.train(training)
    return Perplexity(protocol, original, targets, stride, results)


def _at_length(
    model: nn.Module,
    scorer: Scorer,
    tokens: Tensor,
    windows: Windows,
    by_position: int,
    tokens_per_batch: int,
    progress: Callable[[int], None] | None,
) -> LengthLoss:
    sums: list[float] = []
    along = torch.zeros(windows.length, dtype=torch.float64)  # nll of all windows at each place
    with fixed_length(model, windows.length) as factor:
        for batch in windows.batches(tokens_per_batch):
            rows = torch.stack([tokens[end - windows.length : end] for end in windows.ends[batch]])
            if windows.chunk is None:
                nll = scorer.nll(rows, windows.scored[batch.start]).double()
            else:
                nll = _through_cache(scorer, rows, windows.chunk).double()
            sums += nll.sum(1).tolist()
            if not math.isfinite(sums[-1]) or not math.isfinite(sum(sums)):
                raise ValueError(
                    f"the loss at length {windows.length} is not a finite number. "
                    "Try --dtype float32; if it stays, the model's weights are damaged."
                )
            if by_position:
                along[windows.positions()] += nll.sum(0)
            if progress is not None:
                progress(rows.numel())
    stretches = tuple(_stretches(along, windows, by_position))
    return LengthLoss(windows.length, factor, windows.ends, tuple(sums), windows.scored, stretches)


@torch.inference_mode()
def _through_cache(scorer: Scorer, rows: Tensor, chunk: int) -> Tensor:
    """-ln p in nats, float32 [rows, scored]: chunks read in turn into one cache, the first token of each not scored."""
    cache, found = None, []
    for ids in rows.to(scorer.device, torch.long).split(chunk, dim=1):
        output = scorer.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise _no_cache(scorer.model)
        logits = output.logits[:, :-1].float()
        targets = ids[:, 1:].to(logits.device)
        found.append(cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu())
    return torch.cat(found, dim=1)


def check_cache(model: nn.Module) -> None:
    """Refuse a model that cannot be given a key/value cache, for `chunked-cache`."""
    host = host_of(model)
    if "past_key_values" not in inspect.signature(host.forward).parameters:
        raise _no_cache(host)


def _no_cache(model: nn.Module) -> ValueError:
    name = type(model).__name__
    return ValueError(f"{name} keeps no key/value cache to read chunks into. Choose another protocol.")


def _stretches(along: Tensor, windows: Windows, count: int) -> Iterator[Stretch]:
    scored = torch.zeros(windows.length, dtype=torch.long)
    scored[windows.positions()] = len(windows.ends)
    for start, end in pairwise(windows.length * k // count for k in range(count + 1)) if count else ():
        tokens = int(scored[start:end].sum())
        yield Stretch(start, end, float(along[start:end].sum()) / tokens, tokens)


def cost(plans: Iterable[Windows]) -> int:
    """Tokens that a plan reads: the total of a progress bar."""
    return sum(p.length * len(p.ends) for p in plans)
