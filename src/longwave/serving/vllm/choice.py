"""Which t a request gets, before vLLM hashes its tokens and before it is scheduled."""

from __future__ import annotations

from typing import Any

from longwave.serving.marks import PROFILE, WANTED, is_number, is_salted, salted
from longwave.serving.profiles import Choice, OutOfRange, Profiles

FIRST_ADAPTER = 1_000_001  # numbers of the LoRAs of profiles, beside those that users load


def assign(request: Any, profiles: Profiles, *, limit: int, folder: str, front: bool = True) -> Choice | None:
    """Give an `EngineCoreRequest` its t; None for one that has it already.

    The number of the profile goes into `extra_args`, which travels to the workers. For t > 1 the salt of the prefix
    cache gets t, before the user's own, and the request gets the LoRA of its profile.

    Arguments:
        limit: `max_model_len`.
        folder: the model's, where the LoRAs lie.
        front: whether the request comes from its sender. The engine gets requests from a front end, which has chosen.

    Raises:
        OutOfRange: for what the sender must change.
    """
    sampling = request.sampling_params
    if sampling is None:
        raise OutOfRange("a model with rope profiles generates text, and computes no embeddings.")
    extra = sampling.extra_args or {}
    if PROFILE in extra:
        if front or not _chosen(request, extra[PROFILE], profiles):
            raise OutOfRange(f"{PROFILE} is chosen by the server. Send {WANTED}.")
        return None
    if request.resumable:
        raise OutOfRange("a request that is resumed would change its length factor. Send the whole text as one.")
    prompt = len(request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds)
    new, least = sampling.max_tokens, sampling.min_tokens
    if new is None or new == limit - prompt:  # vLLM fills in the room that is left where no limit was given
        choice = profiles.choose(prompt, None, extra.get(WANTED), limit, least)
    else:
        choice = profiles.choose(prompt, new, extra.get(WANTED), limit)
    profile = profiles.profiles[choice.profile]
    sampling.extra_args = {**extra, PROFILE: choice.profile}
    sampling.max_tokens = choice.new_tokens
    request.cache_salt = salted(request.cache_salt, profile.factor)
    if profile.adapter is not None:
        request.lora_request = _adapter(request, profile.adapter, choice.profile, profile.factor, folder)
    return choice


def _chosen(request: Any, number: Any, profiles: Profiles) -> bool:
    """Whether `assign` has written this number: the salt of its t goes with it."""
    if not is_number(number, len(profiles.profiles)):
        return False
    profile = profiles.profiles[number]
    if not is_salted(request.cache_salt, profile.factor):
        return False
    if profile.adapter is not None and getattr(request.lora_request, "lora_int_id", None) != FIRST_ADAPTER + number:
        return False
    prompt = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
    return bool(len(prompt) + (request.sampling_params.max_tokens or 0) <= profile.length)


def _adapter(request: Any, adapter: str, number: int, factor: float, folder: str) -> Any:
    from vllm.lora.request import LoRARequest

    if request.lora_request is not None:
        raise OutOfRange(
            f"at length factor {factor:g} the model has an adapter of its own, and the request names "
            f"{request.lora_request.lora_name!r}. Send a shorter text, or no adapter."
        )
    return LoRARequest(f"rope-profile-{factor:g}", FIRST_ADAPTER + number, f"{folder}/{adapter}")
