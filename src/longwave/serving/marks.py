"""What a request carries through an engine: the t that its sender chose, the profile that it got, t in its salt."""

from __future__ import annotations

from typing import TypeGuard

WANTED, PROFILE = "rope_factor", "rope_profile"  # keys of a request's own parameters: by the sender, and by a plugin
SALT = "rope-profile"  # t in the salt of the prefix cache: keys of another t must not be found


def salted(own: str | None, factor: float) -> str | None:
    """The salt of the prefix cache at t. It differs for each t and each salt of a user, whatever the user chose."""
    if factor == 1 and not (own or "").startswith(SALT):
        return own
    return f"{SALT} {factor!r}" + ("" if own is None else f" {own}")


def is_salted(salt: str | None, factor: float) -> bool:
    """Whether `salted` has made this salt for t. At t = 1 it may be any."""
    start = f"{SALT} {factor!r}"
    return factor == 1 or salt == start or (salt or "").startswith(f"{start} ")


def is_number(number: object, profiles: int) -> TypeGuard[int]:
    """Whether a request has the number of one of so many profiles."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < profiles
