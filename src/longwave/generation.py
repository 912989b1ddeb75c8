"""Which t the stock `generate` runs at, and what may be done with a key/value cache.

Keys are cached after their rotation, so a generation is only exact if all of it runs at one t: keys and
values of deeper layers came from hidden states under the old t, and rotating them again does not bring back
what the new t would have given. Two policies follow from that, both exact with every cache of transformers:

- `fit` fixes t once per call, for each row from the longest that it can get;
- `grow` lets t double as the text grows, and at each doubling computes the cache again from the first token.

A cache remembers the t it was filled at. One that does not fit is filled again where the whole text is given,
and refused where it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, MaxLengthCriteria, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from longwave.rotary import ScaledRotary

HOOKS = (
    "generate",
    "_prepare_generated_length",
    "_prepare_cache_for_generation",
    "_get_stopping_criteria",
    "prepare_inputs_for_generation",
    "save_pretrained",
)
CALL, FILLED_AT = "_longwave_call", "_longwave_factor"


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
    hooks: dict[str, Callable[..., Any]] = {"save_pretrained": _refuse_save}
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
    before = [(rotary.factor, rotary.generating, rotary.grows) for rotary in rotaries]
    try:
        yield
    finally:
        for rotary, (factor, generating, grows) in zip(rotaries, before, strict=True):
            rotary.factor, rotary.generating, rotary.grows = factor, generating, grows


def rotaries_of(model: nn.Module) -> list[ScaledRotary]:
    return [module for module in model.modules() if isinstance(module, ScaledRotary)]


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own `generate`, its t chosen by `_start` and `_next_inputs`."""
    with factor_for_a_while(rotaries_of(model)):
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
    if rotaries[0].grows:
        speculative = generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant
        _refuse_unsteerable(model_kwargs, speculative=speculative)
    call.lengths = prompt = _prompt_lengths(model_kwargs, call.width)
    for rotary in rotaries:
        rotary.start_generating(prompt if rotary.grows else [length + call.new for length in prompt], call.new)
    cache = model_kwargs.get("past_key_values")
    if isinstance(cache, Cache):
        _adopt(model, cache, whole=_columns(model_kwargs, call.width) == call.width)


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
    setattr(cache, FILLED_AT, _factor(model))
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
    """Tokens of each row, padding left out: its last position + 1."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is not None:
        last = positions[..., -1]
        lengths = (last.amax(0) if last.ndim > 1 else last) + 1
    elif mask is not None:
        lengths = mask.sum(-1)
    else:
        return (width,)
    found: list[int] = lengths.tolist()
    return tuple(found) if len(set(found)) > 1 else (found[0],)


def _refuse_unsteerable(model_kwargs: dict[str, Any], *, speculative: bool) -> None:
    if model_kwargs.get("inputs_embeds") is not None:
        raise ValueError(
            'policy "grow" needs the prompt as input_ids, not as embeddings: it reads the text again. '
            'Pass input_ids, or use set_length(model, "fit").'
        )
    if speculative:
        raise ValueError('policy "grow" cannot decode speculatively. Use set_length(model, "fit").')


def _factor(model: nn.Module) -> Any:
    """What decides about the cache: t, as a number or one for each row."""
    factor = rotaries_of(model)[0].factor
    return tuple(factor.tolist()) if isinstance(factor, Tensor) else factor


def _adopt(model: nn.Module, cache: Cache, *, whole: bool) -> None:
    """Make sure that what the cache holds was computed at the t of this call, and note that t."""
    factor, filled_at = _factor(model), getattr(cache, FILLED_AT, None)
    if filled_at != factor and int(cache.get_seq_length()):
        if not whole:
            raise ValueError(
                f"the cache was filled at t = {filled_at}, this call runs at {factor}. Pass the whole text as "
                "input_ids (it is then computed again), or fix t from the first call on: "
                'set_length(model, "fixed", factor).'
            )
        cache.reset()
    setattr(cache, FILLED_AT, factor)


def _before_forward(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward outside of `generate`: positions that leave padding out, and t by each row's own length.

    Runs eagerly only: under torch.compile a forward is steered by its position ids and `set_length`.
    """
    if torch.compiler.is_compiling() or vars(model).get(CALL) is not None:
        return None
    rotaries = rotaries_of(model)
    if not rotaries or any(rotary.factor is not None for rotary in rotaries):
        return None
    tokens = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
    tokens = args[0] if tokens is None and args else tokens
    cache = kwargs.get("past_key_values")
    past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if past and tokens is not None:
        _require_same_factor(rotaries[0], getattr(cache, FILLED_AT, None), past, past + tokens.shape[1])
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or kwargs.get("position_ids") is not None:
        return None
    plain_text = model.config.get_text_config(decoder=True) is model.config  # others count images their own way
    if plain_text and "position_ids" in inspect.signature(model.forward).parameters and not bool(mask.all()):
        # Padding behind a row stays at its last position, in front of it at 0: neither makes a row longer.
        return args, {**kwargs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    return None


def _require_same_factor(rotary: ScaledRotary, filled_at: Any, past: int, length: int) -> None:
    """A forward on a cache: unless its frequencies are those that the cached keys were rotated with, it is wrong."""
    before = rotary.factor_for(past) if filled_at is None else filled_at
    now = rotary.factor_for(length)
    if before == now or (not isinstance(before, tuple) and rotary.same_frequencies(before, now)):
        return
    raise ValueError(
        f"the cache was filled at t = {before}, but {length} tokens run at t = {now:.6g}. Use model.generate, "
        'or call set_length(model, "fixed", factor) before the cache is filled.'
    )


def _refuse_save(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that transformers loads without the extension. "
        "Use longwave.save(model, folder), or longwave.restore(model) first for the plain model."
    )
