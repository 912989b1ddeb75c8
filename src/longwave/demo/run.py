"""The demo: what one would do with a real model, on a small one that ships with the package.

Every step is a call of the public API; this file can be read as an example of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import longwave
from longwave.data.documents import read_documents
from longwave.data.tokens import stream_and_starts
from longwave.demo.corpus import write_corpus
from longwave.demo.journal import Journal
from longwave.demo.plan import ROWS, DemoSettings, Row, cpu_precision
from longwave.evaluation.base import Inputs, Text
from longwave.evaluation.lengths import parse_lengths
from longwave.evaluation.passkey import PasskeySettings
from longwave.evaluation.perplexity import PerplexitySettings
from longwave.evaluation.registry import EVALUATIONS
from longwave.evaluation.results import PASSKEY, PERPLEXITY, record, write
from longwave.extensions.spec import parse_spec
from longwave.files import read_object, sha256
from longwave.layout import TRAINING
from longwave.provenance import versions

BASE = Path(__file__).parent / "model"


def run_demo(
    output: Path,
    settings: DemoSettings | None = None,
    *,
    base: Path = BASE,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Extend the base model in several ways and measure each, in `output`.

    A restarted run goes on there, or with `overwrite` starts over.

    Returns:
        `perplexity` and `passkey`, the records that were written to `output`, and `seconds` of each step.

    Raises:
        ValueError: if `output` holds something else, or a demo with other settings, unless `overwrite`.
    """
    demo = Demo(output, settings or DemoSettings(), base, console or Console(), overwrite)
    demo.collect_text()
    for row in ROWS:
        if row.training is not None:
            demo.train(row)
        demo.measure(row)
    return demo.finish()


class Demo:
    """The steps, and what several of them need."""

    def __init__(self, output: Path, settings: DemoSettings, base: Path, console: Console, overwrite: bool) -> None:
        self.output, self.settings, self.base, self.console = output, settings, base, console
        known = {
            "base": sha256(base / "model.safetensors"),
            "versions": versions(),
            "training": {row.key: dict(row.training) for row in ROWS if row.training is not None},
            "precision": cpu_precision(),
            **asdict(settings),
            "lengths": list(settings.lengths),  # as JSON will have it
        }
        made = [row.key for row in ROWS if row.training is not None]
        steps = 1 + len(ROWS) + len(made)
        self.journal = Journal(output, known, steps=steps, console=console, made=made, overwrite=overwrite)
        self.text = output / "text"
        self.hashes: dict[str, str] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {PERPLEXITY: [], PASSKEY: []}

    def collect_text(self) -> None:
        """Text that every machine has, a tenth of its files held out."""

        def collect() -> dict[str, str]:
            return {split: sha256(path) for split, path in write_corpus(self.text, self.settings.text).items()}

        self.hashes = self.journal.step("text", "text: the sources of Python's standard library", collect)

    def train(self, row: Row) -> None:
        """The same text and seed for every training."""
        settings = row.settings(self.settings, self.original_length)
        title = f"train {row.label}, windows up to {settings['train_length']:,} tokens"
        self.journal.step(f"train-{row.key}", title, lambda: str(self._train(row, settings)))

    def _train(self, row: Row, settings: dict[str, Any]) -> Path:
        folder, text = self.output / row.key, [self.text / "train.jsonl"]
        finished = longwave.train(self.base, text, folder, resume=True, precision=cpu_precision(), **settings)
        return finished.relative_to(self.output)

    def measure(self, row: Row) -> None:
        """Perplexity and passkey retrieval by length."""
        measured = self.journal.step(f"measure-{row.key}", f"measure {row.label}", lambda: self._measure(row))
        about = {
            "label": row.label,
            "method": row.method,
            "schedule": parse_spec(row.method).schedule.spec,
            "max_factor": self.settings.max_factor,
            "log_n": row.log_n,
            "own": row.training is not None,
            "trained_length": self._trained_length(row),
        }
        for schema, lengths in measured.items():
            self.rows[schema].append({**about, "lengths": lengths})

    def _trained_length(self, row: Row) -> int | None:
        """The longest real window that a row was trained on; L, of pre-training, without another."""
        if row.training is None:
            return self.original_length
        result: dict[str, Any] = read_object(self.output / row.key / TRAINING)["result"]
        return result.get("trained_length")

    def _measure(self, row: Row) -> dict[str, Any]:
        if row.training is not None:
            model = longwave.load(self.output / row.key, dtype=torch.float32)
            scaled: AbstractContextManager[Any] = nullcontext()
        else:
            model = self.model
            scaled = longwave.extended(model, row.method, max_factor=self.settings.max_factor)
        s = self.settings
        with scaled, self._bar() as advance:
            perplexity = longwave.perplexity(model, self.heldout, s.lengths, windows=s.windows, progress=advance)
            retrieval = longwave.passkey(
                model, self.tokenizer, s.lengths, trials=s.trials, seed=s.seed, progress=advance
            )
        return {
            PERPLEXITY: [entry.to_json() for entry in perplexity.lengths],
            PASSKEY: [entry.to_json() for entry in retrieval.lengths],
        }

    @contextmanager
    def _bar(self) -> Iterator[Callable[[int], None]]:
        """A progress bar over the tokens of one measurement."""
        s = self.settings
        tokens = (s.windows + s.trials) * sum(parse_lengths(s.lengths, self.original_length))
        columns = (TextColumn("     "), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("", total=tokens)
            yield lambda done: bar.advance(task, done)

    def finish(self) -> dict[str, Any]:
        """Write both records as the commands would: `longwave plot` draws those of the demo and theirs together."""
        s, written = self.settings, {}
        counts, text = parse_lengths(s.lengths, self.original_length), Text(self.documents, *self.stream)
        inputs = Inputs(self.model, self.tokenizer, counts, self.original_length, text)
        for evaluation, asked in (
            (EVALUATIONS["perplexity"], PerplexitySettings(windows=s.windows)),
            (EVALUATIONS["passkey"], PasskeySettings(trials=s.trials, seed=s.seed)),
        ):
            made = record(
                evaluation.schema,
                model={"path": self.base.name, "sha256": sha256(self.base / "model.safetensors")},
                settings=evaluation.recorded(inputs, asked),
                original_length=self.original_length,
                rows=self.rows[evaluation.schema],
                data={"text/heldout.jsonl": self.hashes["heldout"]} if evaluation.needs_data else None,
                seed=asked.as_dict().get("seed"),
            )
            write(self.output / f"{evaluation.name}.json", made, overwrite=True)
            written[evaluation.name] = made
        return {**written, "seconds": self.journal.seconds}

    @cached_property
    def model(self) -> PreTrainedModel:
        return longwave.load(self.base, dtype=torch.float32)  # stored in bfloat16, to be small

    @cached_property
    def original_length(self) -> int:
        return int(AutoConfig.from_pretrained(self.base).max_position_embeddings)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.base)

    @cached_property
    def documents(self) -> Dataset:
        return read_documents([self.text / "heldout.jsonl"])

    @cached_property
    def stream(self) -> tuple[torch.Tensor, list[int]]:
        """The tokens of the held-out text, and where each document starts."""
        return stream_and_starts(self.documents, self.tokenizer)

    @property
    def heldout(self) -> torch.Tensor:
        return self.stream[0]
