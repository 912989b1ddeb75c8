"""Which t the stock `generate` runs at, and what may be done with a key/value cache.

Keys are cached after their rotation, so a generation is only exact if all of it runs at one t: keys and
values of deeper layers came from hidden states under the old t, and rotating them again does not bring back
what the new t would have given. Two policies follow from that, both exact with every cache of transformers:

- `fit` fixes t once per call, for each row from the longest that it can get;
- `grow` lets t double as the text grows, and at each doubling computes the cache again from the first token.

A cache remembers the t it was filled at (`longwave.caches`). One that does not fit is filled again where the whole
text is given, and refused where it is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, MaxLengthCriteria, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from longwave.caches import adopt, before_forward, rotaries_of
from longwave.rotary import ScaledRotary

HOOKS = (
    "generate",
    "_prepare_generated_length",
    "_prepare_cache_for_generation",
    "_get_stopping_criteria",
    "prepare_inputs_for_generation",
    "save_pretrained",
)
CALL = "_longwave_call"
# Not on the model, which could then no longer be copied.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@dataclass
class _Call:
    """One call of `generate`: what is known of it before the first token.

    Arguments:
        width: columns of `input_ids` at its start, padding included.
        new: how many tokens may follow.
        lengths: tokens of each row at its start, padding left out; [1] if all are alike.
        chunk: tokens of a prefill chunk, None for the whole prompt at once.
    """

    width: int = 0
    new: int = 0
    lengths: tuple[int, ...] = ()
    chunk: int | None = None


def install_hooks(model: PreTrainedModel) -> None:
    """Make `generate` and plain forwards choose t, and `save_pretrained` refuse what could not be read back."""
    hooks: dict[str, Callable[..., Any]] = {"save_pretrained": _save_recognised}
    if isinstance(model, GenerationMixin):
        hooks |= {
            "generate": _generate,
            "_prepare_generated_length": _note_length,
            "_prepare_cache_for_generation": _start,
            "_get_stopping_criteria": _stop_at_our_length,
            "prepare_inputs_for_generation": _next_inputs,
        }
    # On the instance: bound methods survive `copy.deepcopy` (they follow the copy), closures would not.
    vars(model).update({name: MethodType(hook, model) for name, hook in hooks.items()})
    model.register_forward_pre_hook(_before_forward, with_kwargs=True)


def remove_hooks(model: PreTrainedModel) -> None:
    """Give the model its class's own methods back."""
    for name in HOOKS:
        vars(model).pop(name, None)
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _before_forward]:
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def factor_for_a_while(rotaries: list[ScaledRotary]) -> Iterator[None]:
    """Whatever t is fixed inside, put the steering back as it was."""
    with ExitStack() as stack:
        for rotary in rotaries:
            stack.enter_context(rotary.steered())
        yield


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own `generate`, its t chosen by `_start` and `_next_inputs`; one call at a time, t is the model's."""
    with _LOCKS.setdefault(model, threading.RLock()), factor_for_a_while(rotaries_of(model)):
        outer, vars(model)[CALL] = vars(model).get(CALL), _Call()
        try:
            return type(model).generate(model, *args, **kwargs)
        finally:
            vars(model)[CALL] = outer


def _note_length(model: Any, generation_config: Any, **prepared: Any) -> Any:
    """transformers settles the final length of the call here."""
    generation_config = type(model)._prepare_generated_length(model, generation_config, **prepared)
    if (call := vars(model).get(CALL)) is not None:
        # max_length counts input_ids only, also where the prompt came as embeddings
        call.width = prepared["input_ids_length"]
        call.new = generation_config.max_length - prepared["input_ids_length"]
        call.chunk = generation_config.prefill_chunk_size
    return generation_config


def _start(
    model: Any, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: GenerationMode, *args: Any
) -> None:
    """transformers prepares the cache here: everything that t depends on is known, and nothing has run."""
    type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, generation_mode, *args)
    call: _Call | None = vars(model).get(CALL)
    if call is None:  # a method of `generate` called on its own
        return
    rotaries = rotaries_of(model)
    whole, cache = _columns(model_kwargs, call.width) == call.width, model_kwargs.get("past_key_values")
    call.lengths = prompt = _prompt_lengths(model_kwargs, call.width)
    if rotaries[0].grows:
        _refuse_unsteerable(generation_config, generation_mode, model_kwargs)
        if not whole:
            _refuse_growth_of_a_part(rotaries[0], prompt, call.new)
    lengths = [length + (0 if rotaries[0].grows else call.new) for length in prompt]
    if generation_config.is_assistant:  # a call for each few tokens: another t each time would fill the cache anew
        lengths = [rotaries[0].doubled(length) for length in lengths]
    for rotary in rotaries:
        rotary.start_generating(lengths, call.new)
    if isinstance(cache, Cache):
        adopt(model, cache, whole=whole)


def _stop_at_our_length(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The criteria of transformers, which would warn of lengths beyond the original one, at the extended one."""
    criteria = type(model)._get_stopping_criteria(model, *args, **kwargs)
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            criterion.max_position_embeddings = rotaries_of(model)[0].max_length
    return criteria


def _next_inputs(model: Any, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Any:
    """Before each step: under `grow`, whether a row outgrows its t, and then the whole text instead of a token.

    `inputs_embeds` is named because transformers looks for the name before it accepts a prompt of embeddings.
    """
    prepare = type(model).prepare_inputs_for_generation
    if inputs_embeds is not None:
        kwargs["inputs_embeds"] = inputs_embeds
    call: _Call | None = vars(model).get(CALL)
    if call is None or kwargs.get("is_first_iteration") or not any(rotary.grows for rotary in rotaries_of(model)):
        return prepare(model, input_ids, *args, **kwargs)
    grown = input_ids.shape[1] - call.width
    lengths = [length + grown for length in call.lengths]
    changed = [rotary.grow_to(lengths) for rotary in rotaries_of(model)]  # all of them, not until the first
    cache = kwargs.get("past_key_values")
    if not any(changed) or not isinstance(cache, Cache):
        return prepare(model, input_ids, *args, **kwargs)
    cache.reset()
    adopt(model, cache, whole=True)
    return _refill(model, prepare, input_ids, call.chunk, {**kwargs, "next_sequence_length": None})


def _refill(
    model: Any, prepare: Callable[..., Any], input_ids: Tensor, chunk: int | None, kwargs: dict[str, Any]
) -> Any:
    """Inputs that fill an empty cache with the whole text: all of it, or its last chunk after the others ran."""
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


def _columns(model_kwargs: dict[str, Any], width: int) -> int:
    """Columns of the whole text, cached part and padding included."""
    for name in ("position_ids", "attention_mask"):
        if model_kwargs.get(name) is not None:
            return int(model_kwargs[name].shape[-1])
    return width


def _prompt_lengths(model_kwargs: dict[str, Any], width: int) -> tuple[int, ...]:
    """Tokens of each row, padding left out: its largest position + 1."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is not None:
        last = positions.amax(-1)  # not the last one, which may be padding
        lengths = (last.amax(0) if last.ndim > 1 else last) + 1
    elif mask is not None:
        lengths = mask.sum(-1)
    else:
        return (width,)
    found: list[int] = lengths.tolist()
    return tuple(found) if len(set(found)) > 1 else (found[0],)


def _refuse_unsteerable(generation_config: Any, mode: GenerationMode, model_kwargs: dict[str, Any]) -> None:
    """What `grow` cannot read again from `input_ids`, or does not know of."""
    images = [name for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL if model_kwargs.get(name) is not None]
    reason = None
    if model_kwargs.get("inputs_embeds") is not None:
        reason = "needs the prompt as input_ids, not as embeddings: it reads the text again"
    elif images:
        reason = f"cannot read {images[0]} again"
    elif generation_config.guidance_scale not in (None, 1):
        reason = "cannot fill the second cache of guidance_scale again"
    elif mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant:
        reason = "cannot decode speculatively"
    if reason is not None:
        who = "the assistant" if generation_config.is_assistant else "model"
        raise ValueError(f'policy "grow" {reason}. Use set_length({who}, "fit").')


def _refuse_growth_of_a_part(rotary: ScaledRotary, prompt: Sequence[int], new: int) -> None:
    if any(rotary.factor_for(length) != rotary.factor_for(length + new) for length in prompt):
        raise ValueError(
            f'policy "grow" reads the text again where t grows, which {new} new tokens may need: pass the whole text '
            "as input_ids, also what is in the cache."
        )


def _before_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward outside of `generate`. Under torch.compile it is steered by its position ids and `set_length` alone."""
    if torch.compiler.is_compiling() or vars(model).get(CALL) is not None:
        return None
    changed = before_forward(model, args, kwargs)
    return None if changed is None else (args, {**kwargs, **changed})


def _save_recognised(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """An extension that is in the config as it was loaded needs no other place."""
    if all(rotary.recognised for rotary in rotaries_of(model)):
        type(model).save_pretrained(model, *args, **kwargs)
        return
    raise ValueError(
        "save_pretrained would write a folder that transformers loads without the extension. "
        "Use longwave.save(model, folder), or longwave.restore(model) first for the plain model."
    )
