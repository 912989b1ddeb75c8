"""Read `METHOD[@SCHEDULE][+ATTENTION]`: what `extend` puts on a model, in one word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from longwave.attention import ATTENTIONS, Attention, get_attention
from longwave.methods import METHODS, Method, get_method
from longwave.names import unknown
from longwave.schedule import Schedule, parse_schedule


@dataclass(frozen=True)
class Spec:
    """A scaling method, a schedule, and an attention method where there is one."""

    method: Method
    schedule: Schedule
    attention: type[Attention] | None = None

    @property
    def name(self) -> str:
        """As it is written, without the schedule: `yarn`, `yarn+dca`, `two-band`."""
        return named(self.method.name, self.attention)

    @property
    def log_n(self) -> float:
        """The exponent of log-n by default."""
        return self.method.log_n if self.attention is None else self.attention.log_n

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How it is trained by default, by the names of `TrainConfig`'s fields."""
        return {**self.method.recipe, **({} if self.attention is None else self.attention.recipe)}

    def split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of the scaling method, and of the attention method."""
        known = set() if self.attention is None else {item.name for item in fields(self.attention)}
        return (
            {name: value for name, value in options.items() if name not in known},
            {name: value for name, value in options.items() if name in known},
        )


def named(method: str, attention: type[Attention] | Attention | None) -> str:
    """The name of a scaling method with an attention method. The default below an attention method is left out."""
    if attention is None:
        return method
    return attention.name if method == attention.trajectory else f"{method}+{attention.name}"


def parse_spec(text: str) -> Spec:
    """Read `ntk`, `yarn@static=8`, `two-band`, `yarn+self-extend`; an attention method alone has a default below it.

    Raises:
        ValueError: for an unknown name, which offers the nearest one, and for two attention methods.
    """
    first, *rest = text.split("+")
    name, separator, schedule = first.partition("@")
    if (name in ATTENTIONS and rest) or len(rest) > 1:
        raise ValueError(f"{text!r} names two attention methods. Write METHOD[@SCHEDULE][+ATTENTION], as in yarn+dca.")
    attention = get_attention(rest[0]) if rest else None
    if name in ATTENTIONS:
        attention = ATTENTIONS[name]
        method = get_method(attention.trajectory)
    elif name in METHODS:
        method = METHODS[name]
    else:
        raise ValueError(unknown("method", name, METHODS if rest else [*METHODS, *ATTENTIONS]))
    return Spec(method, parse_schedule(schedule if separator else method.schedule), attention)
