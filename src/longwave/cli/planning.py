"""`longwave train --dry-run`: what the run would be and need, as lines or as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longwave.cli.options import check_inputs, print_json
from longwave.cli.recipes import is_given
from longwave.training.machine import GIB, Machine

if TYPE_CHECKING:
    from longwave.training.plan import Plan


def note_devices(machine: Machine, accumulation: int | None, deepspeed: str | None) -> None:
    """Say on stderr that the run has another engine, or another number of devices, than was said or a recipe is for.

    With other devices a step has other tokens.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        return
    found, meant = int(os.environ.get("WORLD_SIZE", 1)), machine.devices
    if meant is not None and meant != found:
        same, rest = divmod(meant * (accumulation or 1), found)
        remedy = "" if rest else f" Pass --accumulation {same} for as many tokens a step."
        typer.echo(f"note: this is for {meant} devices, and the run has {found}.{remedy}", err=True)
    divided = deepspeed is not None or {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ)
    if machine.engine not in (None, "ddp") and not divided:
        typer.echo(
            f"note: this is for {machine.engine}, which a launcher starts, and the run has none: see docs/training.md, "
            "Several processes.",
            err=True,
        )


def planned(model: str, data: list[Path], settings: dict[str, Any], machine: Machine, as_json: bool) -> None:
    """Print the plan of a run.

    Raises:
        ValueError: for settings that cannot be, and for a run that the memory of a device cannot hold.
    """
    check_inputs(model)

    from longwave.training.plan import plan

    found = plan(model, settings, machine)
    paths = [str(path) for path in data if is_given(path)]
    if as_json:
        print_json({**found.as_dict(), "data": paths})
    else:
        for line in lines(found, paths):
            typer.echo(line)
    found.require_fit()


def lines(found: Plan, data: list[str]) -> Iterator[str]:
    """The plan for a reader."""
    sizes, machine = found.sizes, found.machine
    yield f"model        {found.model}, L = {found.original_length:,}"
    yield f"parameters   {sizes.total:,}, of which {sizes.trained:,} are trained"
    yield f"data         {', '.join(data) or 'not said'}"
    yield f"steps        {found.steps:,} of {found.step_tokens:,} tokens: {found.steps * found.step_tokens:,} tokens"
    if found.rate is not None:
        yield f"rate         {found.rate:.3g} for {'the LoRA' if found.has_lora else 'the weights'}"
    for each in found.drawn:
        low, high = each.factors
        spread = f"t = {low:.3g}" if low == high else f"t = {low:.3g} to {high:.3g}"
        yield f"windows      {each.share:.0%} {each.kind} of {_span(each.tokens)} tokens, {spread}"
    yield f"machine      {machine.devices} x {found.available / GIB:.1f} GB, {machine.engine}, {found.precision}"
    if found.memory is None or found.other is None:
        yield "memory       not known: the forward of this model cannot be run without its weights"
        return
    for name, size in found.memory.as_dict().items():
        if size:
            yield f"{'memory' if name == 'weights' else '':<12} {name:<12} {size / GIB:8.2f} GB"
    switch = "without" if found.checkpointing else "with"
    yield f"{'':<12} {found.other.total / GIB:.2f} GB {switch} --gradient-checkpointing"


def _span(tokens: tuple[int, ...]) -> str:
    return f"{tokens[0]:,}" if len(tokens) == 1 else f"{min(tokens):,} to {max(tokens):,}"
