"""What `extend` is asked for: its arguments, read and checked before anything of the model is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from longwave.extensions.adapter import LoRA
from longwave.extensions.arguments import check_arguments
from longwave.extensions.build import refuse_other_settings, refuse_unknown_options
from longwave.extensions.spec import Spec, parse_spec
from longwave.schedule import Schedule, Static, Steps, parse_schedule
from longwave.trajectory import Trajectory

BEST = "two-band"  # of the methods that need no training


@dataclass(frozen=True)
class Request:
    """The arguments of `longwave.extend`, where they are explained.

    Arguments:
        spec: the scaling method, and the attention method where there is one.
        schedule: n tokens -> t.
        log_n: the exponent; 0 for off.
        of_method, of_attention: the options of each.
    """

    spec: Spec
    schedule: Schedule
    max_factor: float
    log_n: float
    beyond: str
    original_length: int | None
    trajectory: Trajectory | None
    head_scalars: bool
    adapter: LoRA | None
    of_method: dict[str, Any]
    of_attention: dict[str, Any]

    @classmethod
    def read(
        cls,
        method: str | None,
        *,
        schedule: str | Schedule | None,
        prior: str | None,
        log_n: bool | float | None,
        options: dict[str, Any],
        **others: Any,
    ) -> Request:
        """Read the arguments of `extend`.

        Raises:
            ValueError: for a value that is not allowed, an unknown name or option, a static schedule over max_factor,
                and settings that are not those of a ready trajectory.
        """
        max_factor, trajectory, original_length = (
            others[name] for name in ("max_factor", "trajectory", "original_length")
        )
        if method is None:
            method = trajectory.name if isinstance(trajectory, Trajectory) else BEST
        check_arguments(
            method=method,
            max_factor=max_factor,
            schedule=schedule,
            log_n=log_n,
            original_length=original_length,
            trajectory=trajectory,
        )
        spec = parse_spec(method)
        options = spec.joined({**options, **({} if prior is None else {"prior": prior})})
        if trajectory is not None:
            spec = replace(parse_spec(trajectory.name), attention=spec.attention)
        chosen = spec.schedule
        if schedule is not None:
            chosen = parse_schedule(schedule) if isinstance(schedule, str) else schedule
        if isinstance(chosen, Static | Steps) and chosen.largest > max_factor:
            raise ValueError(f"schedule {chosen.spec} is over max_factor {max_factor:g}. Raise max_factor.")
        of_method, of_attention = spec.split(options)
        if trajectory is None:
            refuse_unknown_options(spec, options)
        else:
            own_factor = max_factor if spec.attention is None else None
            refuse_other_settings(trajectory, max_factor=own_factor, original_length=original_length, **of_method)
        exponent = spec.log_n if log_n is None else float(log_n)
        return cls(spec, chosen, log_n=exponent, of_method=of_method, of_attention=of_attention, **others)
