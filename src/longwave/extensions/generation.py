"""Choose the t of the stock `generate`, and guard key/value caches.

A cache holds keys after their rotation. A generation is therefore exact only if all of it runs at one t: keys and
values of deeper layers came from hidden states under the old t, and a new rotation does not change these hidden
states. Two policies follow from this, both exact with every cache of transformers:

- `fit` fixes t once per call, for each row from the greatest length that the row can reach;
- `grow` lets t double as the text grows. At each doubling it computes the cache again from the first token.

A cache remembers the t that filled it (`longwave.extensions.caches`). If a call needs another t, the cache is filled
again. This needs the whole text; without the whole text the call is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, MaxLengthCriteria
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from longwave.attention import Attention
from longwave.extensions.bounded import unbound
from longwave.extensions.caches import adopt, before_forward
from longwave.extensions.dial import Dial, lock_of
from longwave.extensions.handle import extension, find_extension
from longwave.extensions.lengths import hides, over_hidden, prompt_columns, prompt_lengths
from longwave.extensions.steering import steering_of


@dataclass
class _Call:
    """One call of `generate`, as known before the first token.

    Arguments:
        width: columns of `input_ids` at the start of the call, padding included.
        new: how many tokens may follow.
        lengths: tokens of each row at the start of the call, without padding; [1] if all rows have the same length.
        chunk: tokens of a prefill chunk, None for the whole prompt at once.
    """

    width: int = 0
    new: int = 0
    lengths: tuple[int, ...] = ()
    chunk: int | None = None


def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own `generate`, its t chosen by `start` and `next_inputs`; one call at a time."""
    dial = extension(model).dial
    with lock_of(dial), dial.held():
        dial.set(call=_Call())
        return type(model).generate(model, *args, **kwargs)


def _call_of(model: Any) -> _Call | None:
    """The `generate` that runs in this thread; None for a method of `generate` called on its own."""
    call: _Call | None = extension(model).dial.now.call
    return call


def note_length(model: Any, generation_config: Any, **prepared: Any) -> Any:
    """transformers settles the final length of the call here."""
    generation_config = type(model)._prepare_generated_length(model, generation_config, **prepared)
    if (call := _call_of(model)) is not None:
        # max_length counts input_ids only, also where the prompt came as embeddings
        call.width = prepared["input_ids_length"]
        call.new = generation_config.max_length - prepared["input_ids_length"]
        call.chunk = generation_config.prefill_chunk_size
    return generation_config


def start(
    model: Any, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: GenerationMode, *args: Any
) -> None:
    """transformers prepares the cache here: everything that t depends on is known, and nothing has run."""
    type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, generation_mode, *args)
    call = _call_of(model)
    if call is None:
        return
    dial = extension(model).dial
    whole, cache = prompt_columns(model_kwargs, call.width) == call.width, model_kwargs.get("past_key_values")
    call.lengths = prompt = prompt_lengths(model_kwargs, call.width)
    speculates = generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant
    if dial.now.grows:
        _refuse_unsteerable(generation_config, speculates, model_kwargs)
        if not whole:
            _refuse_growth_of_a_part(dial, prompt, call.new)
    lengths = [length + (0 if dial.now.grows else call.new) for length in prompt]
    if generation_config.is_assistant:  # a call for each few tokens: another t each time would fill the cache anew
        lengths = [dial.doubled(length) for length in lengths]
    if dial.attention is not None:
        _refuse_other_readings(dial, dial.attention, call, speculates)
        _place_hidden(dial, model_kwargs, max(prompt) + call.new)
    dial.start_generating(lengths, call.new)
    if isinstance(cache, Cache):
        if speculates and isinstance(cache, DynamicCache):  # a draft is cut off the cache again
            unbound(cache)
        elif not getattr(cache, "_is_user_defined", False):
            prepare_cache(model, cache, max(0, call.width - min(prompt)))
        adopt(model, cache, whole=whole)


def _place_hidden(dial: Dial, model_kwargs: dict[str, Any], longest: int) -> None:
    """Beyond L: transformers puts hidden tokens at position 0, where another text would begin in a packed row."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    plain = longest <= dial.original_length and dial.now.factor is None
    if positions is not None and positions.ndim == 2 and hides(mask) and not plain:
        model_kwargs["position_ids"] = over_hidden(positions, mask)


def prepare_cache(model: Any, cache: Any, padding: int = 0) -> None:
    """Let an empty cache hold no more than the model's attention method sees."""
    handle = find_extension(model)
    steering = None if handle is None else steering_of(handle.host)
    if steering is not None and steering.bands is not None:
        steering.bands.prepare(cache, padding)


def stop_at_our_length(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The criteria of transformers, which would warn of lengths beyond the original one, at the extended one."""
    criteria = type(model)._get_stopping_criteria(model, *args, **kwargs)
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            criterion.max_position_embeddings = extension(model).max_length
    return criteria


def next_inputs(model: Any, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Any:
    """Before each step: under `grow`, whether a row outgrows its t, and then the whole text instead of a token.

    `inputs_embeds` is named because transformers looks for the name before it accepts a prompt of embeddings.
    """
    prepare = type(model).prepare_inputs_for_generation
    if inputs_embeds is not None:
        kwargs["inputs_embeds"] = inputs_embeds
    dial = extension(model).dial
    call: _Call | None = dial.now.call
    if call is None or kwargs.get("is_first_iteration") or not dial.now.grows:
        return prepare(model, input_ids, *args, **kwargs)
    grown = input_ids.shape[1] - call.width
    lengths = [length + grown for length in call.lengths]
    changed = dial.grow_to(lengths)
    cache = kwargs.get("past_key_values")
    if changed and isinstance(cache, Cache):
        adopt(model, cache, whole=True)
    if not changed or not isinstance(cache, Cache) or int(cache.get_seq_length()):
        return prepare(model, input_ids, *args, **kwargs)
    return _refill(model, prepare, input_ids, call.chunk, {**kwargs, "next_sequence_length": None})


def _refill(
    model: Any, prepare: Callable[..., Any], input_ids: Tensor, chunk: int | None, kwargs: dict[str, Any]
) -> Any:
    """Inputs that fill an empty cache with the whole text; with chunks, run all but the last and return the last."""
    width = input_ids.shape[1]
    mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
    cuts = [*range(0, width, chunk or width), width]
    inputs = None
    for start, end in pairwise(cuts):
        if inputs is not None:
            model(**inputs, return_dict=True)
        inputs = prepare(
            model,
            input_ids[:, start:end],
            attention_mask=None if mask is None else mask[:, :end],
            position_ids=None if positions is None else positions[..., start:end],
            **kwargs,
        )
    return inputs


def _refuse_unsteerable(generation_config: Any, speculates: bool, model_kwargs: dict[str, Any]) -> None:
    """Refuse inputs that `grow` cannot read again from `input_ids`, or does not know."""
    images = [name for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL if model_kwargs.get(name) is not None]
    reason = None
    if model_kwargs.get("inputs_embeds") is not None:
        reason = "needs the prompt as input_ids, not as embeddings: it reads the text again"
    elif images:
        reason = f"cannot read {images[0]} again"
    elif generation_config.guidance_scale not in (None, 1):
        reason = "cannot fill the second cache of guidance_scale again"
    elif speculates:
        reason = "cannot decode speculatively"
    if reason is not None:
        who = "the assistant" if generation_config.is_assistant else "model"
        raise ValueError(f'policy "grow" {reason}. Use set_policy({who}, "fit").')


def _refuse_other_readings(dial: Dial, attention: Attention, call: _Call, speculates: bool) -> None:
    """Refuse ways to read a text that would change what an attention method chooses."""
    if not attention.prefill_differs:
        return
    if speculates:
        raise ValueError(
            f"{attention.name} cannot decode speculatively: tokens that are read together see other keys. Leave the "
            "assistant out."
        )
    parts, size = attention.prefill_chunk, call.chunk
    width = call.width + (call.new if dial.now.grows else 0)  # where t grows, the whole text is read again
    if size is None or width <= size or parts == 1:
        return
    if parts > width:  # the whole prompt is one part
        raise ValueError(f"{attention.name} reads a prompt in one go. Leave prefill_chunk_size out.")
    if size % parts:
        raise ValueError(f"prefill_chunk_size must be a multiple of {parts}, {attention.name}'s chunk, got {size}.")
    if any(length != call.width for length in call.lengths):
        raise ValueError(
            f"{attention.name} reads prompts of several lengths in one go. Leave prefill_chunk_size out, or pass the "
            "prompts one by one."
        )


def _refuse_growth_of_a_part(dial: Dial, prompt: Sequence[int], new: int) -> None:
    if any(dial.factor_for(length) != dial.factor_for(length + new) for length in prompt):
        raise ValueError(
            f'policy "grow" reads the text again where t grows, which {new} new tokens may need: pass the whole text '
            "as input_ids, also what is in the cache."
        )


def steer_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward outside of `generate`. Under torch.compile it is steered by its position ids and `set_policy` alone."""
    if torch.compiler.is_compiling() or _call_of(model) is not None:
        return None
    changed = before_forward(model, args, kwargs)
    return None if changed is None else (args, {**kwargs, **changed})
