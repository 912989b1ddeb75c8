"""Rows of cos and sin for every t, behind those of the plain model. Engines look them up by number.

Row p is the plain model's at position p. Row start(t) + p is the row of position p at t > 1. Torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from longwave.serving.profiles import Profile, Profiles

CHECKED = 1000  # the row of a profile that is compared with longwave's own frequencies
TOLERANCE = 2e-3  # of cos and sin in float32 at that row


class Refused(ValueError):
    """A model that an engine's plugin cannot serve; the message says why."""


def append_rows(
    cache: Tensor,
    base: float,
    profiles: Profiles,
    padding: int,
    name: str,
    banded: Callable[[int, int], Tensor] | None = None,
) -> tuple[Tensor, list[int]]:
    """The table of an engine's rotary module with the rows of all profiles behind its own; the first row of each.

    Arguments:
        cache: cos and sin of the plain model, [rows, d].
        base: b in θ_i = b^(-2i/d).
        padding: more rows for each profile: tokens that are drafted, and may be refused, beyond its length.
        name: of the module, for messages.
        banded: number of a profile and of rows -> cos and sin, [rows, d]; None where the profiles have no bands.

    Raises:
        Refused: for a table of other frequencies than the profiles were made for.
    """
    pairs = len(profiles.profiles[0].factors)
    if cache.ndim != 2 or cache.shape[1] != 2 * pairs:
        raise Refused(
            f"the table of {name} has the shape {tuple(cache.shape)}, and the profiles are for {pairs} frequencies."
        )
    plain = profiles.profiles[0]
    row = min(CHECKED, profiles.original_length, cache.shape[0]) - 1
    if cache.shape[0] < profiles.original_length or not is_row(cache[row], row, plain):
        raise Refused(
            f"{name} rotates by other frequencies than the profiles were made for. A model with "
            "several rotary tables is not supported."
        )
    parts, starts, rows = [cache], [0], cache.shape[0]
    for number, profile in enumerate(profiles.profiles[1:], 1):
        count, at = profile.length + padding, min(CHECKED, profile.length) - 1
        made = table(profile, base, count, cache.device) if banded is None else banded(number, count).to(cache.device)
        if banded is None and not is_row(made[at], at, profile):
            raise Refused(
                f"the frequencies at t = {profile.factor:g} are not those of longwave: the base of "
                f"{name} is {base!r}. Export the model again."
            )
        starts.append(rows)
        rows += made.shape[0]
        parts.append(made.to(cache.dtype))
    return torch.cat(parts), starts


def table(profile: Profile, base: float, rows: int, device: torch.device) -> Tensor:
    """cos and sin of the first positions at one t, [rows, d], float32; computed as vLLM and SGLang compute theirs."""
    factors = torch.tensor(profile.factors, dtype=torch.float32)
    size = 2 * factors.numel()
    inv_freq = 1.0 / (factors * base ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    angles = torch.outer(torch.arange(rows, dtype=torch.float), inv_freq)
    found = torch.cat((angles.cos(), angles.sin()), dim=-1) * profile.attention_scaling
    return found.to(device)


def is_row(row: Tensor, position: int, profile: Profile) -> bool:
    """Whether a row of a table has the profile's frequencies."""
    rounding = 0.0 if row.dtype == torch.float32 else 2 * torch.finfo(row.dtype).eps
    angles = torch.tensor(profile.inv_freq, dtype=torch.float64) * position
    wanted = torch.cat((angles.cos(), angles.sin())) * profile.attention_scaling
    return bool((row.cpu().double() - wanted).abs().max() <= TOLERANCE + rounding)


def log_ratios(profiles: Profiles, starts: list[int], rows: int, padding: int) -> Tensor:
    """ln max(1, ln(p + 1)/ln L) of every row, float32; p is the row's position."""
    found = torch.zeros(rows, dtype=torch.float64)
    for start, profile in zip(starts[1:], profiles.profiles[1:], strict=True):
        count = profile.length + padding
        positions = torch.arange(count, dtype=torch.float64)
        found[start : start + count] = ((positions + 1).log() / math.log(profiles.original_length)).clamp(min=1).log()
    return found.float()
