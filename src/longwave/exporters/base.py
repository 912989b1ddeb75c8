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
    """The greedy answer of an engine to one prompt.

    Arguments:
        tokens: the new token ids.
        log_probs: natural log-probabilities of the vocabulary before each new token, [new, vocab], float32. NaN for
            tokens of the vocabulary that the engine does not show. None for an engine that shows no log-probabilities.
    """

    tokens: list[int]
    log_probs: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """One export before it is written. Making the plan refuses what the target cannot do.

    Arguments:
        notes: what the user should know; each is a sentence.
        size: the number of bytes of the weights that `write` will write, about.
        tolerance: the largest difference of a log-probability between the engine and longwave that rounding explains;
            None for quantized weights.
    """

    notes: list[str]
    size: int
    tolerance: float | None

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write all files but the model card into an empty folder, holding one tensor in memory at a time."""


class Exporter(ABC):
    """One export target. Its class lies in a file or folder of its own.

    Attributes:
        name: the value of `--target`.
        summary: one line for `--help`.
        library: the library that reads the export; the hub calls it `library_name`.
        quantizations: the values of `--quantize`; the first is the default. Empty: the weights keep their type.
        general: whether the target takes every model that transformers runs. Such a target is offered for a model that
            another target cannot express.
        exact: whether the engine runs the weights in their stored type. `--verify` then compares in that type, and in
            float32 otherwise.
        merges: whether its plan writes what `Source.changes` makes of the weights. A model whose weights follow t is
            refused otherwise.
    """

    name: str
    summary: str
    library: str
    quantizations: tuple[str, ...] = ()
    general: bool = False
    exact: bool = False
    merges: bool = False

    @abstractmethod
    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        """Find and check what is to be written. Reads headers and configs, no weights.

        Raises:
            Unsupported: if the target cannot express the model.
            ValueError: for what the user can mend.
        """

    def plan_profiles(self, source: Source, factors: Sequence[float]) -> Plan:
        """The plan of one folder for several t, which an engine with longwave's plugin reads.

        Raises:
            Unsupported: if the target has no such folder, or cannot express the model.
        """
        raise Unsupported(f"{self.name} has no profiles.")

    @abstractmethod
    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        """The section of the model card on serving, in Markdown, with exact commands.

        Arguments:
            folder: the name of the export's folder, for the commands.
        """

    def serving_profiles(self, folder: str) -> str:
        """The section of the model card on serving a folder of `plan_profiles`."""
        raise Unsupported(f"{self.name} has no profiles.")

    @abstractmethod
    def engine(self) -> str:
        """Name and version of the engine that `run` uses.

        Raises:
            EngineMissing: if the engine is not installed.
        """

    @abstractmethod
    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """Continue each prompt greedily in the engine, by exactly `new_tokens` tokens: no end of text stops it."""

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
