"""Perplexity by length on held-out text while a run goes: the numbers of `longwave perplexity`, a row for each time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes
from longwave.data.kinds import Parsing
from longwave.data.tokens import token_stream
from longwave.evaluation.lengths import doublings, parse_lengths
from longwave.evaluation.losses import LengthLoss
from longwave.evaluation.perplexity import PerplexitySettings, perplexity
from longwave.extensions.sites import host_of
from longwave.extensions.steering import count_keys, steering_of
from longwave.schedule import tokens_at
from longwave.training.config import TrainConfig
from longwave.training.metrics import MetricsLog


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is measured.

    Arguments:
        tokens: the held-out text [tokens].
        lengths: in tokens.
        windows: of each length.
    """

    tokens: Tensor
    lengths: Sequence[int]
    windows: int

    @classmethod
    def of(cls, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, original_length: int) -> HeldOut | None:
        """The text that the settings name; None where they name none.

        Raises:
            ValueError: if the text is too short for the lengths, or a length is beyond the largest factor.
        """
        if config.eval_data is None:
            return None
        lengths = parse_lengths(config.eval_lengths or doublings(config.max_factor), original_length)
        longest = tokens_at(config.max_factor, original_length)
        if max(lengths) > longest:
            raise ValueError(f"eval lengths go up to max factor x {original_length} = {longest}, got {max(lengths)}.")
        paths = [Path(config.eval_data)]
        parsing = Parsing(config.text_column)
        tokens = token_stream(read_documents(paths, data_hashes(paths, parsing), parsing), tokenizer)
        try:
            PerplexitySettings.create(windows=config.eval_windows).plan(tokens.numel(), lengths, original_length, None)
        except ValueError as error:
            raise ValueError(f"eval data {config.eval_data}: {error}") from None
        return cls(tokens, lengths, config.eval_windows)

    def measure(self, network: PreTrainedModel) -> dict[str, Any]:
        """The perplexity at each length, as JSON values. The network is left as it was."""
        start = time.perf_counter()
        with as_it_will_be(network):
            found = perplexity(network, self.tokens, self.lengths, windows=self.windows)
        entries = [_entry(each) for each in found.lengths]
        return {"lengths": entries, "seconds": round(time.perf_counter() - start, 3)}


def _entry(found: LengthLoss) -> dict[str, Any]:
    whole = found.to_json()
    return {name: whole[name] for name in ("length", "factor", "windows", "mean_nll", "ppl", "interval")}


@contextmanager
def as_it_will_be(network: PreTrainedModel) -> Iterator[None]:
    """Within, the network computes as after training: no autocast, log-n counts positions; random states are kept."""
    steering = steering_of(host_of(network))
    temperature = None if steering is None else steering.temperature
    by_keys = temperature is not None and temperature.by_keys
    forward = vars(network).pop("forward", None)  # the one in autocast, which accelerate puts there
    count_keys(host_of(network), False)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        count_keys(host_of(network), by_keys)
        if forward is not None:
            network.forward = forward


class MeasureHeldOut(TrainerCallback):
    """Measures every so many steps, and after the last. All processes do: a layer may be divided among them.

    Arguments:
        network: the model itself, not the engine's wrapper.
        held: what to measure.
        every: steps.
        log: of the rows; None in processes that write nothing.
        others: callbacks that are told the perplexities, by `on_log`.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        held: HeldOut,
        every: int,
        log: MetricsLog | None,
        others: Sequence[TrainerCallback] = (),
    ) -> None:
        self.network, self.held, self.every, self.log, self.others = network, held, every, log, others

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        found = self.held.measure(self.network)
        if self.log is not None:
            self.log.append({"step": state.global_step, **found})
        logs = {f"eval_ppl_{entry['length']}": entry["ppl"] for entry in found["lengths"]}
        for other in self.others:
            other.on_log(args, state, control, logs=logs)
