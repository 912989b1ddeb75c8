"""Windows of a token stream are read under their length factor, and the loss of each is summed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longwave.evaluation.base import Reading
from longwave.evaluation.decoded import must_decode
from longwave.evaluation.loss import Scorer, evaluating
from longwave.evaluation.losses import LengthLoss, Stretch
from longwave.evaluation.windows import Windows
from longwave.extensions.reach import fixed_length
from longwave.extensions.sites import host_of


def read_windows(
    model: nn.Module, tokens: Tensor, plans: Sequence[Windows], by_position: int, how: Reading
) -> tuple[LengthLoss, ...]:
    """The loss of every window, with the model in eval mode for the while.

    Arguments:
        tokens: the token stream that the windows are places of, shape [tokens].
        plans: the windows of each length.
        by_position: in how many stretches of the window to report the loss; 0 for none.
    """
    scorer = Scorer(model, block_elements=how.block_elements)
    with evaluating(model):
        return tuple(_at_length(model, scorer, tokens, windows, by_position, how) for windows in plans)


def _at_length(
    model: nn.Module, scorer: Scorer, tokens: Tensor, windows: Windows, by_position: int, how: Reading
) -> LengthLoss:
    sums: list[float] = []
    along = torch.zeros(windows.length, dtype=torch.float64)  # nll of all windows at each place
    with fixed_length(model, windows.length) as factor:
        for batch in windows.batches(how.tokens_per_batch):
            rows = torch.stack([tokens[end - windows.length : end] for end in windows.ends[batch]])
            if windows.chunk is None:
                nll = scorer.nll(rows, windows.scored[batch.start]).double()
            else:
                nll = _through_cache(scorer, rows, windows.chunk).double()
            found = nll.sum(1).tolist()
            if not all(map(math.isfinite, found)):
                raise ValueError(
                    f"the loss at length {windows.length} is not a finite number. "
                    "Try --dtype float32; if it stays, the model's weights are damaged."
                )
            sums += found
            if by_position:
                along[windows.positions()] += nll.sum(0)
            how.told(rows.numel())
    stretches = tuple(_stretches(along, windows, by_position))
    read = must_decode(model)
    return LengthLoss(windows.length, factor, windows.ends, tuple(sums), windows.scored, stretches, as_prompt=read)


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
