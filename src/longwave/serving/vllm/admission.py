"""Which t a request gets, before vLLM hashes its tokens and before it is scheduled."""

from __future__ import annotations

from typing import Any

from longwave.serving.profiles import Choice, OutOfRange, Profiles

WANTED, PROFILE = "rope_factor", "rope_profile"  # keys of `extra_args`: by the sender, and by this plugin
SALT = "rope-profile"  # t in the salt of the prefix cache: keys of another t must not be found
FIRST_ADAPTER = 1_000_001  # numbers of the LoRAs of profiles, beside those that users load


def assign(request: Any, profiles: Profiles, *, limit: int, folder: str) -> Choice | None:
    """Give an `EngineCoreRequest` its t; None for one that has it already.

    The number of the profile goes into `extra_args`, which travels to the workers. For t > 1 the salt of the prefix
    cache gets t, behind the user's own, and the request gets the LoRA of its profile.

    Arguments:
        limit: `max_model_len`.
        folder: the model's, where the LoRAs lie.

    Raises:
        OutOfRange: for what the sender must change.
    """
    sampling = request.sampling_params
    if sampling is None:
        raise OutOfRange("a model with rope profiles generates text, and computes no embeddings.")
    extra = sampling.extra_args or {}
    if PROFILE in extra:
        return None
    if request.resumable:
        raise OutOfRange(
            "a request that is resumed would change its length factor. Send the whole text as one request."
        )
    prompt = len(request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds)
    new = sampling.max_tokens
    # vLLM has filled in the room that is left where no limit was given.
    choice = profiles.choose(prompt, None if new is None or new >= limit - prompt else new, extra.get(WANTED), limit)
    profile = profiles.profiles[choice.profile]
    sampling.extra_args = {**extra, PROFILE: choice.profile}
    sampling.max_tokens = choice.new_tokens
    if profile.factor > 1:
        own = request.cache_salt
        request.cache_salt = f"{SALT} {profile.factor!r}" + ("" if own is None else f" {own}")
    if profile.adapter is not None:
        request.lora_request = _adapter(request, profile.adapter, choice.profile, profile.factor, folder)
    return choice


def _adapter(request: Any, adapter: str, number: int, factor: float, folder: str) -> Any:
    from vllm.lora.request import LoRARequest

    if request.lora_request is not None:
        raise OutOfRange(
            f"at length factor {factor:g} the model has an adapter of its own, and the request names "
            f"{request.lora_request.lora_name!r}. Send a shorter text, or no adapter."
        )
    return LoRARequest(f"rope-profile-{factor:g}", FIRST_ADAPTER + number, f"{folder}/{adapter}")
