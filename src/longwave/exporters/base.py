"""What an export target has to provide: an `Exporter`, which describes it, and a `Plan` of each export.

No torch, transformers or numpy here, nor in the module of an exporter: the help of `longwave export` is made from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from longwave.exporters.source import Source
    from longwave.trajectory import Snapshot


class EngineMissing(ValueError):
    """The engine that runs a target is not installed; the message says how to install it."""


class Unsupported(ValueError):
    """The target cannot express the model. The message says why; `export` adds the name of a target that can."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine said to one prompt, greedily.

    Arguments:
        tokens: the new token ids.
        log_probs: natural log-probabilities over the vocabulary before each of them, [new, vocab], float32; NaN
            for the tokens that the engine did not show, None where it shows none at all.
    """

    tokens: list[int]
    log_probs: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """One export before it is written. Whatever can be refused has been refused when the plan was made.

    Arguments:
        notes: what the user should know, one sentence an entry.
        size: about how many bytes `write` writes: those of the weights.
        tolerance: the largest |Δ log-probability| between the engine and longwave that is rounding; None for quantized
            weights.
    """

    notes: list[str]
    size: int
    tolerance: float | None

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write all files but the model card into an empty folder, holding one tensor in memory at a time."""


class Exporter(ABC):
    """One target: a folder of its own, with a class that has these members.

    Arguments:
        name: as in `--target`.
        summary: one line for `--help`.
        library: who reads it, as `library_name` on the hub has it.
        quantizations: what `--quantize` may be; the first is the default. Empty where weights stay as they are.
        general: takes whatever transformers runs, and is offered where another target cannot express a model.
        exact: its engine runs the weights in their own type, as longwave does; others are compared in float32.
    """

    name: str
    summary: str
    library: str
    quantizations: tuple[str, ...] = ()
    general: bool = False
    exact: bool = False

    @abstractmethod
    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        """What is to be written, found and checked once. Reads headers and configs, no weights.

        Raises:
            Unsupported: if the target cannot express the model.
            ValueError: for what the user can mend.
        """

    @abstractmethod
    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        """The model card's section on how to serve it, in Markdown, with exact commands; `folder` is its name."""

    @abstractmethod
    def engine(self) -> str:
        """Name and version of the engine that `run` uses; raises `EngineMissing`."""

    @abstractmethod
    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """Continue each prompt greedily by exactly `new_tokens` tokens (ends of text do not stop it) in the engine."""

    def quantization(self, name: str | None) -> str | None:
        """The quantization of that name, in upper or lower case; for None the first, if there is one.

        Raises:
            ValueError: if the target has no such quantization.
        """
        if name is None:
            return next(iter(self.quantizations), None)
        if name.lower() not in self.quantizations:
            known = ", ".join(self.quantizations) or "none: its weights stay as they are"
            raise ValueError(f"{self.name} has no quantization {name!r}. Available: {known}.")
        return name.lower()
