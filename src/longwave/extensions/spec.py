"""Read `METHOD[@SCHEDULE][+ATTENTION][:KEY=VALUE]...`: what `extend` puts on a model, in one word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from longwave.attention import ATTENTIONS, Attention, get_attention
from longwave.methods import METHODS, Method, get_method
from longwave.names import offer, unknown
from longwave.schedule import Schedule, parse_schedule
from longwave.settings import parse_pairs


@dataclass(frozen=True)
class Spec:
    """A scaling method, a schedule, an attention method where there is one, and the options of both."""

    method: Method
    schedule: Schedule
    attention: type[Attention] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

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

    @property
    def option_names(self) -> list[str]:
        """The options that can be given: of the attention method, and of the scaling method."""
        own = [] if self.attention is None else [item.name for item in self.attention.own_fields()]
        return [*own, *self.method.option_names]

    def joined(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options beside a spec, and those in it.

        Raises:
            ValueError: for an option that is in both with two values.
        """
        for name in sorted(set(options) & set(self.options)):
            if options[name] != self.options[name]:
                raise ValueError(
                    f"option {name} is {self.options[name]!r} in the name of the method, and {options[name]!r} beside "
                    "it. Leave one out."
                )
        return {**self.options, **options}

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


def spelled(name: str, schedule: str, options: Mapping[str, Any] | None = None) -> str:
    """A spec as `parse_spec` takes it: `yarn@ceiling+dca`, `two-band@continuous:window=64`.

    Arguments:
        name: of the methods, as `named` gives it.
    """
    first, plus, attention = name.partition("+")
    behind = "".join(f":{key}={_written(value)}" for key, value in (options or {}).items())
    return f"{first}{'@' if schedule else ''}{schedule}{plus}{attention}{behind}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parse_spec(text: str) -> Spec:
    """Read METHOD[@SCHEDULE][+ATTENTION][:KEY=VALUE]...: `ntk`, `yarn@static=8`, `two-band:window=64`, `yarn+dca`.

    An attention method alone has a default scaling method below it.

    Raises:
        ValueError: for an unknown name, which offers the nearest one, and for what is not written so.
    """
    names, *pairs = text.split(":")
    first, *rest = names.split("+")
    name, separator, schedule = first.partition("@")
    _check_form(names, [name, *rest])
    attention = get_attention(rest[0]) if rest else None
    if name in ATTENTIONS:
        attention = ATTENTIONS[name]
        method = get_method(attention.trajectory)
    elif name in METHODS:
        method = METHODS[name]
    else:
        raise ValueError(unknown("method", name, METHODS if rest else [*METHODS, *ATTENTIONS]))
    return Spec(method, parse_schedule(schedule if separator else method.schedule), attention, parse_pairs(pairs))


def _check_form(text: str, names: list[str]) -> None:
    """Refuse what is not METHOD[@SCHEDULE][+ATTENTION], and say how it is written."""
    form = "Write METHOD[@SCHEDULE][+ATTENTION], as in yarn+dca."
    if text != "".join(text.split()):
        raise ValueError(f"{text!r} has spaces. Write {''.join(text.split())}.")
    if len(names) > 1 and not all(names):
        where = "after" if names[0] else "before"
        raise ValueError(f"{text!r} names nothing {where} the +. {form}")
    *others, last = names
    if others and "@" in last:
        behind, _, schedule = last.partition("@")
        raise ValueError(
            f"{text!r} has its schedule behind the attention method. Write {others[0]}@{schedule}+{behind}."
        )
    if sum(name in ATTENTIONS for name in names) > 1:
        raise ValueError(f"{text!r} names two attention methods. {form}")
    if sum(name in METHODS for name in names) > 1:
        raise ValueError(f"{text!r} names two scaling methods. {form}")
    if len(names) == 2 and names[0] in ATTENTIONS and last in METHODS:
        raise ValueError(f"{text!r} has the attention method first. Write {last}+{names[0]}.")
    for name in others if len(names) > 2 else ():
        if name not in METHODS and name not in ATTENTIONS:
            raise ValueError(unknown("method", name, [*METHODS, *ATTENTIONS]))
    if len(names) > 2:
        raise ValueError(f"{text!r} names {len(names)} methods. {form}")


def with_options(specs: Iterable[str], options: Mapping[str, Any]) -> tuple[str, ...]:
    """Specs with options: each has those that its methods know.

    Raises:
        ValueError: for an option that none of the methods has.
    """
    found, unused = [], dict(options)
    for text in specs:
        spec = parse_spec(text)
        spec.joined(options)
        own = {name: value for name, value in options.items() if name in spec.option_names}
        found.append(
            text + "".join(f":{name}={_written(value)}" for name, value in own.items() if name not in spec.options)
        )
        unused = {name: value for name, value in unused.items() if name not in own}
    if unused:
        name, known = next(iter(unused)), sorted({name for text in specs for name in parse_spec(text).option_names})
        raise ValueError(f"{', '.join(specs)} has no option {name!r}. {offer(name, known)}")
    return tuple(dict.fromkeys(found))
