"""Put a model under one method after another, and say what each row of a table is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from longwave.checkpoints.trained import trained_of
from longwave.extensions.attach import extended, suspended
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import original_length_of
from longwave.extensions.sites import host_of
from longwave.extensions.spec import parse_spec, spelled
from longwave.extensions.steering import log_n_of
from longwave.methods import without_weights
from longwave.schedule import Schedule, factor_of

TRAINING_FREE = ("none", "linear", "ntk", "yarn")


@dataclass(frozen=True)
class Subject:
    """What a row is about: a method on a model.

    Arguments:
        method: the name of the scaling method, with the attention method where there is one.
        schedule: how t follows the length, as `parse_schedule` reads it.
        max_factor: the largest t in range.
        log_n: exponent of the per-query log-n attention scaling, 0 for off.
        own: whether it is the extension that the model was saved with. Any other is put on for the measurement.
        trained_length: the longest real window that model and method were trained on, in tokens; None: unknown.
        options: of the method, as far as they were given.
    """

    method: str
    schedule: str
    max_factor: float
    log_n: float
    own: bool
    trained_length: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method's name, with the schedule if that is not the method's default, and the options that were given."""
        default = parse_spec(self.method).schedule.spec
        return spelled(self.method, "" if self.schedule == default else self.schedule, self.options)

    def to_json(self) -> dict[str, Any]:
        """The start of a row in a record, see docs/results-schema.md."""
        about = asdict(self)
        if not about["options"]:
            del about["options"]
        return {"label": self.label, **about}


@contextmanager
def under(model: nn.Module, spec: str, lengths: Sequence[int]) -> Iterator[Subject]:
    """Within, the model runs under `METHOD[@SCHEDULE][+ATTENTION]`; afterwards it is as before.

    Under its own method an extended model keeps its trained trajectory. Another method replaces the trajectory: the
    frequencies change, weights and log-n stay, and max_factor is what `lengths` need. An attention method has its own
    log-n.

    Raises:
        ValueError: for an unknown method, or one that needs trained weights the model does not have.
    """
    parsed = parse_spec(spec)
    method, schedule = parsed.method, parsed.schedule
    handle = find_extension(model)
    own = handle is not None and handle.spec == parsed.name and not parsed.options
    trained = handle is not None and own and handle.is_trained
    if method.trained and not trained:
        raise without_weights(method)
    exponent, known = log_n_of(host_of(model)), trained_of(model)
    if handle is not None and own:
        with handle.dial.held() as dial:
            if "@" in spec:
                dial.set(schedule=schedule)
            log_n = handle.log_n
            yield Subject(
                parsed.name, handle.schedule.spec, handle.max_factor, log_n, own=True, trained_length=known.length
            )
        return
    original = original_length_of(model)
    factor = _range(schedule, lengths, original)
    with ExitStack() as stack:
        if handle is not None:
            stack.enter_context(suspended(model))
        kept = exponent if exponent and parsed.attention is None else None  # None: the method's default
        stack.enter_context(extended(model, spec, max_factor=factor, log_n=kept, original_length=original))
        log_n, trained_length = log_n_of(host_of(model)), known.weights
        yield Subject(parsed.name, schedule.spec, factor, log_n, False, trained_length, parsed.options)


def _range(schedule: Schedule, lengths: Sequence[int], original: int) -> float:
    """The smallest max_factor that has room for all lengths, and for every t that the schedule asks for."""
    longest = factor_of(max(lengths), original)
    return max(longest, *(schedule(length, original, longest) for length in lengths))
