"""From a method and its options to the trajectories of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from longwave.attention import Attention
from longwave.extensions.spec import Spec
from longwave.names import offer
from longwave.rope import Rope
from longwave.trajectory import Trajectory


def refuse_unknown_options(spec: Spec, options: Iterable[str]) -> None:
    """A `ValueError` for an option that neither the scaling method nor the attention method has."""
    known = spec.option_names
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{spec.name} has no option {unknown[0]!r}. {offer(unknown[0], sorted(known))}")


def build_attention(spec: Spec, ropes: list[Rope], max_factor: float, options: dict[str, Any]) -> Attention | None:
    """The attention method of a spec; None where it has none.

    Raises:
        ValueError: for an option that cannot be, and for distances that no scaling method shortens.
    """
    if spec.attention is None:
        return None
    length = ropes[0].original_length
    attention = spec.attention.create(original_length=length, max_factor=max_factor, **options)
    span = attention.span(max_factor)
    if spec.method.name == "none" and attention.factor(max_factor) > 1:
        if span <= length:
            raise ValueError(
                f"{attention.name} turns far keys at other frequencies, which none does not have. Write "
                f"{attention.name} alone, which is {attention.trajectory}+{attention.name}, or yarn+{attention.name}."
            )
        raise ValueError(
            f"{attention.name} has distances of up to {span:,.0f} at {max_factor:g} x {length:,} tokens, more than the "
            f"model knows. Put a scaling method below it (yarn+{attention.name}), change its options, or lower "
            "max_factor."
        )
    return attention


def build_trajectories(spec: Spec, ropes: list[Rope], max_factor: float, options: dict[str, Any]) -> list[Trajectory]:
    """One trajectory per distinct rope, shared by the modules that have it.

    Raises:
        ValueError: for an option that cannot be.
    """
    method = spec.method
    known = inspect.signature(method.build).parameters
    below = {} if spec.attention is None else spec.attention.below
    options = {name: value for name, value in below.items() if name in known} | options
    built: dict[tuple[float, ...], Trajectory] = {}
    for rope in ropes:
        key = tuple(rope.inv_freq.tolist())
        if key not in built:
            try:
                built[key] = method.build(rope, max_factor, **options)
            except TypeError as error:  # an option that the constructor does not have, or a value of a wrong type
                raise ValueError(f"{method.name}: {error}.") from None
    return [built[tuple(rope.inv_freq.tolist())] for rope in ropes]


def refuse_other_settings(trajectory: Trajectory, **given: Any) -> None:
    """A `ValueError` for what is given beside a ready trajectory and is not its own; None counts as not given."""
    own = {"max_factor": trajectory.max_factor, "original_length": trajectory.rope.original_length}
    own |= trajectory.options()
    for name, value in given.items():
        if value is not None and value != own.get(name):
            raise ValueError(
                f"{name} {value!r} is not the trajectory's, which has {own.get(name)!r}. "
                "Leave it out or give the same, or extend without trajectory."
            )


def refuse_other_ropes(trajectory: Trajectory, ropes: list[Rope]) -> None:
    """A `ValueError` if a rotary module of the model has another number of frequencies than the trajectory."""
    own = trajectory.rope.inv_freq.numel()
    for rope in ropes:
        if rope.inv_freq.numel() != own:
            raise ValueError(
                f"the trajectory has {own} frequencies, the model {rope.inv_freq.numel()}. Build it from this model's "
                "rope, or leave it out."
            )
