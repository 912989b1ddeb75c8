"""Perplexity against context length, under a named protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longwave.evaluation.base import Cost, Evaluation, Inputs, Measured, Progress, split
from longwave.evaluation.kinds import Loss
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.losses import Perplexity
from longwave.evaluation.windows import PROTOCOLS, Windows, check_stretches, chunk_of, in_words, plan
from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PerplexitySettings(Settings):
    """Which windows are read, and which of their tokens are scored."""

    whose: ClassVar[str] = "perplexity"

    protocol: str = setting(
        "same-targets", "Which tokens are scored, and under how much context.", choices=tuple(PROTOCOLS)
    )
    windows: int | None = setting(None, "Windows of each length; default 64 or what fits, 0 for all.")
    targets: int = setting(64, "same-targets: tokens scored at the end of each window.")
    stride: int = setting(256, "stride, overlap: tokens from one window to the next.")
    chunk: int | None = setting(None, "chunked-cache: tokens of a chunk; default 4096 or the trained length.")
    by_position: int = setting(0, "Also the loss in N stretches of the window, where it is scored whole.")

    def plan(
        self, tokens: int, lengths: Sequence[int], original: int, documents: Sequence[int] | None
    ) -> list[Windows]:
        """The windows of each length in a stream of so many tokens.

        Raises:
            ValueError: if the stream is too short, or the protocol has no loss by position.
        """
        plans = plan(
            self.protocol, tokens, lengths, windows=self.windows, targets=self.targets, stride=self.stride,
            chunk=chunk_of(self.chunk, original), documents=documents,
        )  # fmt: skip
        check_stretches(self.by_position, self.protocol, lengths)
        return plans

    def check(self, model: nn.Module, tokens: Tensor, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Refuse token ids that the model has no row for, and a model without the cache that the protocol needs."""
        from longwave.data.prompts import check_ids
        from longwave.evaluation.read_windows import check_cache

        check_ids(tokens, model, tokenizer)
        if self.protocol == "chunked-cache":
            check_cache(model)


class PerplexityEvaluation(Evaluation[PerplexitySettings]):
    """Measure perplexity against context length.

    same-targets (default): contexts of every length end at the same places, and the last 64 tokens are scored, so
    columns differ by the context only. stride: a window every 256 tokens; each scores the tokens that are new in it.
    overlap: the same windows, each scored whole. truncate: the beginning of each document that is long enough for
    all lengths, scored whole. chunked-cache: windows read in chunks through a cache, as in the CLEX code. Numbers of
    different protocols cannot be compared.

    Under a method that is not its own, a trained model keeps its weights and its log-n; only the frequencies change.
    Writes perplexity.json, with the loss of every window, and perplexity.png.
    """

    name = "perplexity"
    summary = "how well the next token is predicted, under a named protocol"
    schema = "longwave.perplexity/1"
    quantity = Loss("Perplexity", "perplexity", "ppl", words=in_words)
    needs_data = True
    Settings = PerplexitySettings
    examples = (
        "longwave perplexity MODEL --data book.txt --lengths 1x,2x,4x,8x --methods none,ntk,yarn",
        "longwave perplexity out --data books/ --lengths 1x,2x,4x,8x,16x --windows 512",
        "longwave perplexity out --data books/ --lengths 4096,16384 --protocol stride --windows 0 --json",
        "longwave perplexity out --data proofs.jsonl --lengths 8x --protocol truncate --by-position 32",
    )

    def plan(self, inputs: Inputs, settings: PerplexitySettings) -> Cost:
        plans = self._windows(inputs, settings)
        settings.check(inputs.model, inputs.text.tokens, inputs.tokenizer)
        return Cost(sum(windows.length * len(windows.ends) for windows in plans))

    def measure(self, inputs: Inputs, settings: PerplexitySettings, progress: Progress) -> Iterable[Measured]:
        from longwave.evaluation.read_windows import read_windows

        plans, how = self._windows(inputs, settings), inputs.reading(progress)
        return read_windows(inputs.model, inputs.text.tokens, plans, settings.by_position, how)

    def recorded(self, inputs: Inputs, settings: PerplexitySettings) -> dict[str, Any]:
        given = settings.as_dict()
        found = {name: given[name] for name in ("protocol", "windows", "targets", "stride")}
        found["tokens"] = inputs.text.tokens.numel()
        if settings.protocol == "chunked-cache":
            found["chunk"] = chunk_of(settings.chunk, inputs.original_length)
        return found

    @staticmethod
    def _windows(inputs: Inputs, settings: PerplexitySettings) -> list[Windows]:
        text = inputs.text
        return settings.plan(text.tokens.numel(), inputs.lengths, inputs.original_length, text.starts)


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    lengths: str | Iterable[int | str],
    *,
    documents: Sequence[int] | None = None,
    **settings: Any,
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
        documents: where each document starts in `tokens`, for `truncate`; see `longwave.data.tokens.stream_and_starts`.
        settings: those of `PerplexitySettings`, by name:
            protocol: one of the above, default `same-targets`.
            windows: how many windows; None (default) for 64 or what fits, 0 for all that fit.
            targets, stride: in tokens, default 64 and 256.
            chunk: tokens of a chunk in `chunked-cache`; None (default) for 4,096, or L if that is less.
            by_position: in how many equal stretches of the window to report the loss, for protocols that score
                windows whole (`overlap`, `truncate`, `chunked-cache`); 0 (default) for none.
            And those of `Reading`:
            original_length: what `1x` means, default the model's own.
            tokens_per_batch: windows are batched up to that many tokens, default 8,192.
            block_elements: logits (rows x positions x vocabulary) computed at a time.
            progress: called after each batch with the number of tokens read.

    Raises:
        ValueError: for bad settings or lengths, a length beyond the model's maximum, too little data, token ids
            that the model has no row for, or a loss that is not a finite number.

    Source: `stride` Press et al. (arXiv 2012.15832), `overlap` LongLoRA (2309.12307), `truncate` YaRN (2309.00071),
    `chunked-cache` github.com/DAMO-NLP-SG/CLEX.
    """
    from longwave.evaluation.read_windows import read_windows
    from longwave.extensions.reach import check_lengths, original_length_of

    asked, how = split(PerplexitySettings, settings)
    original = how.original_length if how.original_length is not None else original_length_of(model)
    counts = parse_lengths(lengths, original)
    check_lengths(model, counts)
    plans = asked.plan(tokens.numel(), counts, original, documents)
    asked.check(model, tokens)
    results = read_windows(model, tokens, plans, asked.by_position, how)
    return Perplexity(asked.protocol, original, asked.targets, asked.stride, results)
