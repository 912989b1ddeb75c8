"""Continue a text that may be longer than the model was trained for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longwave.extensions.decoding import NEW_TOKENS, Decoding, new_tokens
from longwave.settings import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GenerateSettings(Decoding):
    """How a text is continued."""

    policy: str = setting(
        "fit",
        "fit: one t, from prompt and --max-new-tokens; grow: t doubles with the text.",
        choices=("fit", "grow"),
    )
    prefill_chunk: int | None = setting(None, "Read the prompt N tokens at a time: less memory, same result.", least=1)


@dataclass(frozen=True)
class Continuation:
    """A continued text.

    Arguments:
        text: what is new.
        prompt_tokens, new_tokens: how many.
        factor: t that the text has reached.
        policy: None for a model that is not extended.
        seconds: for all of it.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    factor: float
    policy: str | None
    seconds: float


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    settings: GenerateSettings,
    *,
    streamer: Any = None,
    hint: str = "",
) -> Continuation:
    """Let the model go on from a text.

    Arguments:
        model: extended or not; the policy of an extended one is set.
        streamer: gets the new tokens as they come, as in `model.generate`.
        hint: what else one can do about a text that is too long, for messages.

    Raises:
        ValueError: for a prompt without tokens, with unknown ones, or too long for the model with its answer.
    """
    import torch
    from transformers import set_seed

    from longwave.data.prompts import check_ids, prompt_ids
    from longwave.extensions.handle import find_extension
    from longwave.extensions.policy import set_policy
    from longwave.extensions.reach import reach_of

    ids = torch.tensor([prompt_ids(tokenizer, text)], dtype=torch.long, device=model.device)
    if not ids.numel():
        raise ValueError("the prompt is empty: the tokenizer finds no token in it.")
    check_ids(ids, model, tokenizer)
    length, limit, most = ids.shape[1], reach_of(model), settings.max_new_tokens
    if length >= limit:
        raise ValueError(
            f"the prompt has {length} tokens and the model reads {limit}, the answer's included. Shorten it{hint}."
        )
    if most is None:
        most = min(NEW_TOKENS, limit - length)
    if length + most > limit:
        raise ValueError(
            f"{length} tokens of prompt and {most} new ones are more than {limit}. "
            f"Shorten the prompt or lower --max-new-tokens{hint}."
        )
    handle = find_extension(model)
    if handle is not None:
        set_policy(model, settings.policy)
    set_seed(settings.seed)
    started = time.perf_counter()
    arguments = {**settings.arguments(tokenizer), "prefill_chunk_size": settings.prefill_chunk, "streamer": streamer}
    new = new_tokens(model, ids, most, arguments)
    reached = length + (len(new) if settings.policy == "grow" else most)
    return Continuation(
        text=str(tokenizer.decode(new, skip_special_tokens=True)),
        prompt_tokens=length,
        new_tokens=len(new),
        factor=1.0 if handle is None else handle.dial.factor_for(reached),
        policy=None if handle is None else settings.policy,
        seconds=time.perf_counter() - started,
    )
