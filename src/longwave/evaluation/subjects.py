"""Put a model under one method after another, and say what each row of a table is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from longwave.extensions.attach import extended, suspended
from longwave.extensions.handle import find_extension
from longwave.extensions.log_n import log_n_of
from longwave.extensions.reach import original_length_of
from longwave.extensions.sites import host_of
from longwave.methods import METHODS, parse_method, without_weights
from longwave.schedule import Schedule, factor_of

TRAINING_FREE = ("none", "linear", "ntk", "yarn")


@dataclass(frozen=True)
class Subject:
    """What a row is about: a method on a model.

    Arguments:
        method: the method's name.
        schedule: how t follows the length, as `parse_schedule` reads it.
        max_factor: the largest t in range.
        log_n: exponent of the per-query log-n attention scaling, 0 for off.
        own: whether it is the extension that the model was saved with. Any other is put on for the measurement.
    """

    method: str
    schedule: str
    max_factor: float
    log_n: float
    own: bool

    @property
    def label(self) -> str:
        """The method's name, with the schedule if that is not the method's default."""
        return self.method if self.schedule == METHODS[self.method].schedule else f"{self.method}@{self.schedule}"

    def to_json(self) -> dict[str, Any]:
        """The start of a row in a record, see docs/results-schema.md."""
        return {"label": self.label, **asdict(self)}


@contextmanager
def under(model: nn.Module, spec: str, lengths: Sequence[int]) -> Iterator[Subject]:
    """Within, the model runs under `METHOD[@SCHEDULE]`; afterwards it is as before.

    Under its own method an extended model keeps its trained trajectory. Another method replaces the trajectory: the
    frequencies change, weights and log-n stay, and max_factor is what `lengths` need.

    Raises:
        ValueError: for an unknown method, or one that needs trained weights the model does not have.
    """
    method, schedule = parse_method(spec)
    handle = find_extension(model)
    own = handle is not None and handle.method == method.name
    trained = handle is not None and own and handle.is_trained
    if method.trained and not trained:
        raise without_weights(method)
    exponent = log_n_of(host_of(model))
    if handle is not None and own:
        with handle.dial.held() as dial:
            if "@" in spec:
                dial.set(schedule=schedule)
            yield Subject(method.name, handle.schedule.spec, handle.max_factor, handle.log_n, own=True)
        return
    original = original_length_of(model)
    factor = _range(schedule, lengths, original)
    with ExitStack() as stack:
        if handle is not None:
            stack.enter_context(suspended(model))
        log_n = exponent or None  # None: the method's default
        stack.enter_context(extended(model, spec, max_factor=factor, log_n=log_n, original_length=original))
        yield Subject(method.name, schedule.spec, factor, log_n_of(host_of(model)), own=False)


def _range(schedule: Schedule, lengths: Sequence[int], original: int) -> float:
    """The smallest max_factor that has room for all lengths, and for every t that the schedule asks for."""
    longest = factor_of(max(lengths), original)
    return max(longest, *(schedule(length, original, longest) for length in lengths))
