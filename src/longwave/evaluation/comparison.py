"""Several models and methods measured alike: every cell once, whatever interrupts it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.checkpoints.folder import ModelFolder
from longwave.checkpoints.outline import outline
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes, data_identity
from longwave.data.prompts import tokenizer_identity
from longwave.data.tokens import tokenise
from longwave.evaluation.alike import Table, check_trained_lengths
from longwave.evaluation.base import Inputs, Text
from longwave.evaluation.candidates import Candidate, label, refuse_copies
from longwave.evaluation.cells import Cell, Store, fingerprint, versions
from longwave.evaluation.lengths import LONGEST_DEFAULT, doublings, parse_lengths
from longwave.evaluation.merging import merged
from longwave.evaluation.results import Record, record
from longwave.evaluation.sketches import Sketch, Weightless
from longwave.evaluation.subjects import under
from longwave.evaluation.suites import Step
from longwave.evaluation.windows import TOKENS_PER_BATCH, check_batch
from longwave.extensions.reach import check_lengths, original_length_of
from longwave.extensions.spec import parse_spec

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from longwave.models import Opened

POLL = 1.0  # seconds between looks at cells that another process computes


@dataclass
class Comparison:
    """Every candidate under each of its methods in each step of a suite.

    Arguments:
        candidates: the models.
        steps: the suite.
        folder: where finished cells are kept, and found again.
        load: (files of a model) -> model and tokenizer, ready to be measured.
        data: paths of the user's text, for evaluations that read it.
        lengths: for steps that set none. None stands for doublings of L up to what all candidates reach, at most 16x.
        setup: dtype and kind of device: the numbers depend on them.
        tokens_per_batch: tokens read at a time.
    """

    candidates: Sequence[Candidate]
    steps: Sequence[Step]
    folder: Path
    load: Callable[[ModelFolder], Opened]
    data: Sequence[Path] = ()
    lengths: str | None = None
    setup: Mapping[str, Any] = field(default_factory=dict)
    tokens_per_batch: int = TOKENS_PER_BATCH

    def __post_init__(self) -> None:
        check_batch(self.tokens_per_batch)
        for step in self.steps:
            if step.evaluation.needs_data and not self.data:
                raise ValueError(f"{step.name} needs text. Pass --data PATH.")
        for candidate in self.candidates:
            for spec in candidate.specs:
                parse_spec(spec)
        if self.lengths is None:
            reach = [candidate.extension[1] for candidate in self.candidates if candidate.extension is not None]
            self.lengths = doublings(min([LONGEST_DEFAULT, *reach]))
        self.store = Store(self.folder)
        self._loaded: tuple[str, Opened] | None = None
        self._texts: dict[str, Text] = {}  # by the model's path, and by the tokenizer's identity

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the data files."""
        return data_hashes(self.data) if self.data else {}

    @cached_property
    def documents(self) -> Dataset:
        """The data, read once: the same contents that `hashes` names."""
        return read_documents(self.data, self.hashes)

    @cached_property
    def folders(self) -> dict[str, ModelFolder]:
        """The files of each model, by its path. Cell keys and numbers come from these same files."""
        return {each.path: each.folder for each in self.candidates}

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, model by model."""
        found, identities = [], {path: fingerprint(folder) for path, folder in self.folders.items()}
        refuse_copies(self.candidates, identities)
        shared = {"setup": dict(self.setup), "versions": versions()}
        of_step = {
            step.name: {
                "evaluation": {"schema": step.evaluation.schema, "settings": step.settings.as_dict()}
                | step.evaluation.depends(step.settings),
                "lengths": step.lengths or self.lengths,
                "data": data_identity(self.hashes) if step.evaluation.needs_data else [],
            }
            for step in self.steps
        }
        for candidate in self.candidates:
            for spec in candidate.specs:
                name = label(self.candidates, candidate, spec)
                row = {"model": identities[candidate.path], "method": spec}
                found += [
                    Cell(name, candidate.path, spec, step, {**row, **measured, **shared})
                    for step, measured in of_step.items()
                ]
        return found

    def missing(self) -> list[Cell]:
        """Cells that are not finished. The cells of the model that is loaded come first.

        They are sorted by model and then by step: each model is loaded once, and so is a second model that an
        evaluation needs.
        """
        found = list({cell.key: cell for cell in self.cells if not self.store.has(cell)}.values())
        paths, steps = list(dict.fromkeys(cell.model for cell in found)), [step.name for step in self.steps]
        held = None if self._loaded is None else self._loaded[0]
        return sorted(found, key=lambda cell: (cell.model != held, paths.index(cell.model), steps.index(cell.step)))

    def cost(self) -> int:
        """The number of tokens that the missing cells will read.

        Every evaluation checks its settings on each model, without the weights where that is possible. A model that
        has to be loaded for this stays loaded until the next model is.

        Raises:
            ValueError: for a cell that cannot be measured, or that cannot stand in one table with the others.
        """
        tables = {step.name: Table(step.name) for step in self.steps}
        trained: dict[str, int] = {}
        for cell in self.cells:
            if self.store.has(cell):
                found = self.store.read(cell)
                trained[cell.model] = found["original_length"]
                tables[cell.step].add(cell.model, found["settings"])
        missing, total = self.missing(), 0
        for path in dict.fromkeys(cell.model for cell in missing):
            sketch = self._sketch(path)
            trained[path] = original_length_of(sketch.model)
            check_trained_lengths(trained)
            total += self._plan(sketch, [cell for cell in missing if cell.model == path], tables)
        return total

    def _plan(self, sketch: Sketch, cells: Sequence[Cell], tables: Mapping[str, Table]) -> int:
        """The number of tokens that the cells of one model will read. Each of its methods is put on once, as a test."""
        total, tried = 0, set[tuple[Any, ...]]()
        for step in self.steps:
            methods = [cell.method for cell in cells if cell.step == step.name]
            if not methods:
                continue
            inputs = self._inputs(step, cells[0].model, sketch)
            for method in methods:
                if (asked := (method, *inputs.lengths)) not in tried:
                    tried.add(asked)
                    with under(sketch.model, method, inputs.lengths):
                        check_lengths(sketch.model, inputs.lengths)
            total += len(methods) * step.evaluation.plan(inputs, step.settings).tokens
            tables[step.name].add(cells[0].model, step.evaluation.recorded(inputs, step.settings))
        return total

    def run(
        self,
        progress: Callable[[Cell], Callable[[int], None]],
        finished: Callable[[Cell], None] = lambda cell: None,
    ) -> None:
        """Compute the missing cells, and wait for those that another process computes.

        Arguments:
            progress: (cell that begins) -> callback for the number of tokens read.
            finished: called with each cell that was missing, when it is finished.
        """
        waiting = self.missing()
        while waiting:
            busy = []
            for cell in waiting:
                if self._compute(cell, progress) or self.store.has(cell):
                    finished(cell)
                else:
                    busy.append(cell)
            if len(busy) == len(waiting):
                time.sleep(POLL)
            waiting = busy

    def records(self) -> dict[str, Record]:
        """One record for each step, rows in the order of the candidates."""
        found = {step.name: [cell for cell in self.cells if cell.step == step.name] for step in self.steps}
        return {name: merged(cells, [self.store.read(cell) for cell in cells]) for name, cells in found.items()}

    def _compute(self, cell: Cell, progress: Callable[[Cell], Callable[[int], None]]) -> bool:
        """False if another process has the cell."""
        with self.store.claim(cell) as ours:
            if ours and not self.store.has(cell):
                self.store.write(cell, self._measure(cell, progress(cell)))
        return ours

    def _measure(self, cell: Cell, progress: Callable[[int], None]) -> Record:
        step, loaded = self._step(cell), self._get(cell.model)
        inputs = self._inputs(step, cell.model, loaded)
        with under(loaded.model, cell.method, inputs.lengths) as subject:
            # Within: a generator measures as it is read, and outside the method would be off again.
            entries = [entry.to_json() for entry in step.evaluation.measure(inputs, step.settings, progress)]
        settings = step.evaluation.recorded(inputs, step.settings)
        row, seed = {**subject.to_json(), "lengths": entries}, step.settings.as_dict().get("seed")
        return record(
            step.evaluation.schema, model=loaded.about, settings=settings, original_length=inputs.original_length,
            rows=[row], data=self.hashes if step.evaluation.needs_data else None, seed=seed,
        )  # fmt: skip

    def _inputs(self, step: Step, path: str, sketch: Sketch) -> Inputs:
        original = original_length_of(sketch.model)
        lengths = parse_lengths(step.lengths or self.lengths or "", original)
        given = self._text(path, sketch.tokenizer) if step.evaluation.needs_data else None
        return Inputs(sketch.model, sketch.tokenizer, lengths, original, given, self.tokens_per_batch)

    def _text(self, path: str, tokenizer: PreTrainedTokenizerBase) -> Text:
        """The data in the tokens of a model. Models with the same tokenizer share them."""
        if path not in self._texts:
            key = tokenizer_identity(tokenizer) or path
            if key not in self._texts:
                stream = tokenise(self.documents, tokenizer)
                self._texts[key] = Text(self.documents, stream.tensor(), stream.starts.tolist())
            self._texts[path] = self._texts[key]
        return self._texts[path]

    def _sketch(self, path: str) -> Sketch:
        """The model without its weights, or the loaded model where that fails: `load` says best what is wrong."""
        model = outline(self.folders[path])
        if model is not None:
            try:
                return Weightless(model, load_tokenizer(self.folders[path]))
            except (OSError, ValueError):
                pass
        return self._get(path)

    def _get(self, path: str) -> Opened:
        """One model at a time: the next one takes its place."""
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None
            self._loaded = (path, self.load(self.folders[path]))
        return self._loaded[1]

    def _step(self, cell: Cell) -> Step:
        return next(step for step in self.steps if step.name == cell.step)
