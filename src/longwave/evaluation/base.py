"""What an evaluation is: a class with settings that plans, and then measures."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from longwave import settings as base
from longwave.evaluation.windows import TOKENS_PER_BATCH
from longwave.names import unknown

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from longwave.evaluation.quantity import Quantity

BLOCK_ELEMENTS = 2**24  # logits alive at a time: 64 MiB in float32
Progress = Callable[[int], None]
Kind = TypeVar("Kind", bound=base.Settings)


class Measured(Protocol):
    """What was measured at one length; `to_json` makes an entry of a record of it."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Text:
    """The user's data as a model's tokenizer reads it.

    Arguments:
        documents: with one column, `text`.
        tokens: all of them as one stream of token ids.
        starts: where each document starts in it.
    """

    documents: Dataset
    tokens: Tensor
    starts: Sequence[int]


@dataclass(frozen=True)
class Reading:
    """How a model is read. No result should depend on it.

    Arguments:
        original_length: the length that `1x` stands for; None for the model's own L.
        tokens_per_batch: the most tokens in a batch of rows.
        block_elements: logits (rows x positions x vocabulary) that are computed at a time.
        progress: called with the number of tokens after each read.
    """

    original_length: int | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH
    block_elements: int = BLOCK_ELEMENTS
    progress: Progress | None = None

    def told(self, tokens: int) -> None:
        """Tell the progress."""
        if self.progress is not None:
            self.progress(tokens)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an evaluation is given.

    Arguments:
        model: a transformers causal LM under the method to be measured; without weights where only `plan` is asked.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens.
        original_length: L.
        given: the user's data, None where an evaluation reads none.
        tokens_per_batch: how much is read at a time.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lengths: Sequence[int]
    original_length: int
    given: Text | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH

    @property
    def text(self) -> Text:
        """The data, of which an evaluation that `needs_data` can be sure."""
        assert self.given is not None
        return self.given

    def reading(self, progress: Progress | None = None) -> Reading:
        """How the model is to be read."""
        return Reading(self.original_length, self.tokens_per_batch, progress=progress)


@dataclass(frozen=True)
class Cost:
    """What an evaluation of a model under one method will cost.

    Arguments:
        tokens: how many it will read.
    """

    tokens: int


class Evaluation(ABC, Generic[Kind]):
    """A way to measure a model against its context length. Its docstring is the help of its command.

    The module of a subclass is imported for every help page, so it imports torch, transformers and numpy within
    functions only.

    Attributes:
        name: of its command, its files, and in a suite.
        summary: one line for lists.
        schema: of its records, `longwave.NAME/1`; the number changes when a field changes its meaning.
        quantity: the kind of its numbers. Tables, plots, the report and the check of a record follow from it.
        Settings: its settings with defaults, help and checks. They are the options of its command.
        before: settings that its older records lack, with the values that they were measured under.
        examples: command lines for the help.
        needs_data: whether it reads the user's text.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    schema: ClassVar[str]
    quantity: ClassVar[Quantity]
    Settings: ClassVar[type[base.Settings]]
    before: ClassVar[Mapping[str, Any]] = {}
    examples: ClassVar[tuple[str, ...]] = ()
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def plan(self, inputs: Inputs, settings: Kind) -> Cost:
        """What `measure` will cost.

        Arguments:
            inputs: as for `measure`, but the model's parameters may be on the meta device: they have shapes and no
                values.

        Raises:
            ValueError: for what cannot be measured.
        """

    @abstractmethod
    def measure(self, inputs: Inputs, settings: Kind, progress: Progress) -> Iterable[Measured]:
        """Measure at each length, in order; `progress` is told the number of tokens after each read."""

    def recorded(self, inputs: Inputs, settings: Kind) -> dict[str, Any]:
        """The settings that a record states. Rows can be compared if these are equal."""
        return {name: value for name, value in settings.as_dict().items() if name != "seed"}

    def depends(self, settings: Kind) -> dict[str, Any]:
        """What else the numbers depend on, for the hash of a cell. An entry `settings` replaces the settings there.

        Raises:
            ValueError: for something that is missing, a second model for example.
        """
        return {}

    def settings(self, given: Mapping[str, Any]) -> base.Settings:
        """The settings of a step of a suite, with defaults for those that it does not give. None is a value, too.

        Raises:
            ValueError: naming the setting, what it got, and what is allowed.
        """
        named = {str(name): value for name, value in given.items()}
        self.Settings.create(**named)  # refuses names that there are not
        return self.Settings(**named)

    def help(self) -> str:
        """The text of its command's help."""
        examples = "".join(f"\n\n{line}" for line in self.examples)
        return (inspect.getdoc(type(self)) or self.summary) + (f"\n\nExamples:{examples}" if examples else "")


def split(kind: type[Kind], options: Mapping[str, Any]) -> tuple[Kind, Reading]:
    """The settings of an evaluation, and how to read the model, from the keywords of a public function.

    Raises:
        ValueError: naming a keyword that is neither, or a value that is not allowed.
    """
    how = [item.name for item in fields(Reading)]
    known = [item.name for item in fields(kind)]
    for name in options:
        if name not in known and name not in how:
            raise ValueError(unknown(f"setting of {kind.whose}", name, [*known, *how]))
    asked = kind.create(**{name: _plain(value) for name, value in options.items() if name in known})
    return asked, Reading(**{name: value for name, value in options.items() if name in how})


def _plain(value: Any) -> Any:
    """A whole number of numpy as one of Python, which is what settings are checked for."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
