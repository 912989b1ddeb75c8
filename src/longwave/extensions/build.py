"""From a method and its options to the trajectories of a model."""

from __future__ import annotations

import inspect
from typing import Any

from longwave.methods import Method
from longwave.rope import Rope
from longwave.trajectory import Trajectory


def build_trajectories(
    method: Method, ropes: list[Rope], max_factor: float, options: dict[str, Any]
) -> list[Trajectory]:
    """One trajectory per distinct rope, shared by the modules that have it.

    Raises:
        ValueError: for an option that the method does not have.
    """
    known = inspect.signature(method.build).parameters
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        available = sorted(set(known) - {"rope", "max_factor", "name"})
        if unknown := sorted(set(options) - set(available)):
            raise ValueError(
                f"{method.name} has no option {unknown[0]!r}. Available: {', '.join(available) or 'none'}."
            )
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
