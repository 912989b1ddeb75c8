"""Which t a request gets, when its text is tokenized and before it is scheduled."""

from __future__ import annotations

from typing import Any

from longwave.serving.marks import PROFILE, WANTED, is_number, is_salted, salted
from longwave.serving.profiles import Choice, OutOfRange, Profiles


def assign(request: Any, profiles: Profiles, limit: int) -> Choice:
    """Give a `TokenizedGenerateReqInput` its t.

    The number of the profile goes into `custom_params`, which travels to the workers. For t > 1 the request's
    `extra_key`, which keeps the prefix cache apart, gets t before the user's own.

    Arguments:
        limit: the longest text that SGLang was started for.

    Raises:
        OutOfRange: for what the sender must change.
    """
    sampling = request.sampling_params
    given = sampling.custom_params or {}
    if PROFILE in given:
        raise OutOfRange(f"{PROFILE} is chosen by the server. Send {WANTED}.")
    if request.session_params is not None or request.session_id is not None:
        raise OutOfRange("a session would change its length factor. Send the whole text as one.")
    if sampling.beam_width is not None and sampling.beam_width > 1:
        raise OutOfRange("a model with rope profiles has no beam search. Leave beam_width out.")
    new, least = sampling.max_new_tokens, sampling.min_new_tokens
    choice = profiles.choose(_tokens(request), new, given.get(WANTED), limit, least if new is None else 0)
    sampling.custom_params = {**given, PROFILE: choice.profile}
    sampling.max_new_tokens = choice.new_tokens
    request.extra_key = salted(request.extra_key, profiles.profiles[choice.profile].factor)
    return choice


def is_chosen(request: Any, profiles: Profiles) -> bool:
    """Whether `assign` has seen a request: its text fits the profile, and t is in its key of the prefix cache."""
    number = (request.sampling_params.custom_params or {}).get(PROFILE)
    if not is_number(number, len(profiles.profiles)):
        return False
    profile = profiles.profiles[number]
    length = _tokens(request) + (request.sampling_params.max_new_tokens or 0)
    return bool(length <= profile.length) and is_salted(request.extra_key, profile.factor)


def start_of(request: Any, starts: list[int]) -> int:
    """The first row of a `Req`. Requests that SGLang makes up to warm up have no profile: they run at t = 1."""
    return starts[int((request.sampling_params.custom_params or {}).get(PROFILE, 0))]


def _tokens(request: Any) -> int:
    return len(request.input_ids if request.input_ids is not None else request.input_embeds)
