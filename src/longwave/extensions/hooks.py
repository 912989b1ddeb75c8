"""What `extend` puts on the model object itself: methods that know of the extension, and a hook before each forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from longwave.extensions.generation import (
    generate,
    next_inputs,
    note_length,
    start,
    steer_forward,
    stop_at_our_length,
)
from longwave.extensions.handle import extension
from longwave.extensions.steering import change_attention


class Bound(partial[Any]):
    """A function bound to a model, as a method is. It follows the model when that is copied or pickled.

    A method of a function that is no attribute of its class cannot be pickled.
    """

    @property
    def __self__(self) -> PreTrainedModel:
        model: PreTrainedModel = self.args[0]
        return model


def save_recognised(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """An extension that is in the config as it was loaded needs no other place."""
    if extension(model).recognised:
        type(model).save_pretrained(model, *args, **kwargs)
        return
    raise ValueError(
        "save_pretrained would write a folder that transformers loads without the extension. "
        "Use longwave.save(model, folder), or longwave.restore(model) first for the plain model."
    )


def warn_of_peft(model: PreTrainedModel, prefix: str, keep_vars: bool) -> None:
    """Before the state of a model inside a PeftModel is taken: PEFT saves its adapter of it, and nothing else."""
    if prefix.startswith("base_model.model.") and any(extension(model).learned.values()):
        warnings.warn(
            "PEFT saves its adapter alone, without the extension of the model and what it learned. "
            "longwave.save(model, folder) saves both, and longwave.load(folder) reads them.",
            stacklevel=2,
        )


ALWAYS: dict[str, Callable[..., Any]] = {
    "save_pretrained": save_recognised,
    "set_attn_implementation": change_attention,
}
GENERATING: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "_prepare_generated_length": note_length,
    "_prepare_cache_for_generation": start,
    "_get_stopping_criteria": stop_at_our_length,
    "prepare_inputs_for_generation": next_inputs,
}


def install_hooks(model: PreTrainedModel) -> None:
    """Make `generate` and plain forwards choose t, and refuse or adapt what would lose the extension."""
    hooks = ALWAYS | (GENERATING if isinstance(model, GenerationMixin) else {})
    vars(model).update({name: Bound(hook, model) for name, hook in hooks.items()})
    model.register_forward_pre_hook(steer_forward, with_kwargs=True)
    model.register_state_dict_pre_hook(warn_of_peft)


def remove_hooks(model: PreTrainedModel) -> None:
    """Give the model its class's own methods back."""
    for name in ALWAYS | GENERATING:
        vars(model).pop(name, None)
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is steer_forward]:
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)
    for key in [key for key, hook in model._state_dict_pre_hooks.items() if hook is warn_of_peft]:
        del model._state_dict_pre_hooks[key]
