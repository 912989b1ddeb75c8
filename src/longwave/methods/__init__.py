"""Every scaling method, by name. To add one: a file here and a line in METHODS.

A method that the configs of transformers can express has the type of that scaling beside it (`ROPE_TYPE`), which
reads it; its line in METHODS names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc, signature
from types import MappingProxyType
from typing import Any

from longwave.methods import linear, llama3, longrope, ntk, yarn
from longwave.methods.clex import CLEX, clex_paper
from longwave.methods.none import Unscaled
from longwave.methods.scaling import RopeType
from longwave.names import look_up
from longwave.schedule import Schedule, parse_schedule
from longwave.trajectory import Trajectory

__all__ = ["METHODS", "Method", "get_method", "parse_method", "rope_types", "without_weights"]


@dataclass(frozen=True)
class Method:
    """A named way to build a trajectory, with what the rest of the library should default to.

    Arguments:
        name: as on the command line.
        build: (rope, max_factor, **options) -> Trajectory.
        summary: one line for tables.
        source: paper or code.
        rope_type: the type of RoPE scaling in a model's config that the method reads; None where there is none.
        trained: True where the method is meaningless without trained weights of its own.
        advised: whether an error may advise it in the place of another: it extends a model, and needs no option.
        log_n: exponent of the per-query log-n attention scaling by default, 0 for off.
        schedule: the default schedule's spec.
        recipe: training defaults, by the names of `TrainConfig`'s fields.
        takes: the class whose options it takes, if `build` is a preset of it.
    """

    name: str
    build: Callable[..., Trajectory]
    summary: str
    source: str
    rope_type: RopeType | None = None
    trained: bool = False
    advised: bool = True
    log_n: float = 0.0
    schedule: str = "continuous"
    recipe: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    takes: Callable[..., Trajectory] | None = None

    @property
    def option_names(self) -> list[str]:
        """The options of the method, in the order of its signature."""
        return [name for name in signature(self.takes or self.build).parameters if name not in NO_OPTIONS]

    def described_options(self) -> list[dict[str, Any]]:
        """The options with their defaults, and the help from the docstring. A preset has defaults of its own."""
        builder = self.takes or self.build
        helps, parameters = _arguments(getdoc(builder) or ""), signature(builder).parameters
        defaults = {name: None if self.takes else parameters[name].default for name in self.option_names}
        return [{"name": name, "default": defaults[name], "help": helps.get(name, "")} for name in self.option_names]


NO_OPTIONS = ("rope", "max_factor", "name")  # of a builder: `extend` gives them


def _arguments(docstring: str) -> dict[str, str]:
    """What the section `Arguments:` of a docstring says about each of them."""
    section = re.search(r"^Arguments:\n((?:    .*\n?)+)", docstring, re.MULTILINE)
    found = re.findall(r"^    (\w+): ((?:.*\n?)(?:     .*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


_PAPER = {"positions": "random", "factors": "integer", "lr": 2e-5, "field_lr": 2e-5}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", Unscaled, "pre-trained frequencies at every length", "baseline", advised=False),
        Method(
            "linear", linear.Linear, "Position Interpolation: all frequencies / t", "arXiv 2306.15595", linear.ROPE_TYPE
        ),
        Method("ntk", ntk.NTK, "NTK-aware: a larger base", "arXiv 2309.00071, section 3.1", ntk.ROPE_TYPE),
        Method("yarn", yarn.YaRN, "interpolation by parts with a temperature", "arXiv 2309.00071", yarn.ROPE_TYPE),
        Method("llama3", llama3.Llama3, "interpolation by parts as in Llama 3.1", "arXiv 2407.21783", llama3.ROPE_TYPE),
        Method(
            "longrope",
            longrope.LongRoPE,
            "searched factors for each frequency",
            "arXiv 2402.13753",
            longrope.ROPE_TYPE,
            advised=False,
        ),
        Method("clex", CLEX, "learned trajectory, bounded field", "arXiv 2310.16450", trained=True, log_n=1.0),
        Method(
            "clex-paper",
            clex_paper,
            "learned trajectory, the official layer",
            "arXiv 2310.16450",
            trained=True,
            log_n=1.0,
            schedule="ceiling",
            recipe=MappingProxyType(_PAPER),
            takes=CLEX,
        ),
    )
}


def get_method(name: str) -> Method:
    """Look a method up; an unknown name is a `ValueError` that offers the nearest one."""
    return look_up("method", name, METHODS)


def without_weights(method: Method, model: str = "this model", remedy: str | None = None) -> ValueError:
    """The error for a method that needs trained weights, and a model that has none.

    Arguments:
        remedy: a sentence that says what to do; None for training, or another method.
    """
    if remedy is None:
        others = ", ".join(name for name, other in METHODS.items() if other.advised and not other.trained)
        remedy = f"Run `longwave train` first, or choose among {others}."
    return ValueError(f"{method.name} needs trained weights, and {model} has none. {remedy}")


def rope_types() -> dict[str, tuple[str, RopeType]]:
    """The types of RoPE scaling that a method reads from a config: by `rope_type`, the method's name and the type."""
    types = ((method.name, method.rope_type) for method in METHODS.values())
    return {rope_type.name: (name, rope_type) for name, rope_type in types if rope_type is not None}


def parse_method(spec: str) -> tuple[Method, Schedule]:
    """Read `METHOD[@SCHEDULE]`, e.g. `ntk`, `yarn@static=8`; the schedule defaults to the method's own."""
    name, separator, schedule = spec.partition("@")
    method = get_method(name)
    return method, parse_schedule(schedule if separator else method.schedule)
