"""Every scaling method, by name. To add one: a file here and a line in METHODS."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from longwave.methods.clex import CLEX, clex_paper
from longwave.methods.linear import Linear
from longwave.methods.llama3 import Llama3
from longwave.methods.longrope import LongRoPE
from longwave.methods.none import Unscaled
from longwave.methods.ntk import NTK
from longwave.methods.yarn import YaRN
from longwave.schedule import Schedule, parse_schedule
from longwave.trajectory import Trajectory

__all__ = ["METHODS", "Method", "get_method", "parse_method"]


@dataclass(frozen=True)
class Method:
    """A named way to build a trajectory, with what the rest of the library should default to.

    Arguments:
        name: as on the command line.
        build: (rope, max_factor, **options) -> Trajectory.
        summary: one line for tables.
        source: paper or code.
        trained: True where the method is meaningless without trained weights of its own.
        log_n: exponent of the per-query log-n attention scaling by default, 0 for off.
        schedule: the default schedule's spec.
        recipe: training defaults, by the names of `TrainConfig`'s fields.
    """

    name: str
    build: Callable[..., Trajectory]
    summary: str
    source: str
    trained: bool = False
    log_n: float = 0.0
    schedule: str = "continuous"
    recipe: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_PAPER = {"positions": "random", "factors": "integer", "lr": 2e-5, "field_lr": 2e-5}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", Unscaled, "pre-trained frequencies at every length", "baseline"),
        Method("linear", Linear, "Position Interpolation: all frequencies / t", "arXiv 2306.15595"),
        Method("ntk", NTK, "NTK-aware: a larger base", "arXiv 2309.00071, section 3.1"),
        Method("yarn", YaRN, "interpolation by parts with a temperature", "arXiv 2309.00071"),
        Method("llama3", Llama3, "interpolation by parts as in Llama 3.1", "arXiv 2407.21783"),
        Method("longrope", LongRoPE, "searched factors for each frequency", "arXiv 2402.13753"),
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
        ),
    )
}


def get_method(name: str) -> Method:
    """Look a method up; an unknown name is a `ValueError` that offers the nearest one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name.lower(), METHODS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown method {name!r}. {hint}Available: {', '.join(METHODS)}.")


def parse_method(spec: str) -> tuple[Method, Schedule]:
    """Read `METHOD[@SCHEDULE]`, e.g. `ntk`, `yarn@static=8`; the schedule defaults to the method's own."""
    name, separator, schedule = spec.partition("@")
    method = get_method(name)
    return method, parse_schedule(schedule if separator else method.schedule)
