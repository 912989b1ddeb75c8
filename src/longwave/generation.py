"""Which t the stock `generate` runs at.

Keys are cached after their rotation, so a generation is only exact if all of it runs at one t:
keys and values of deeper layers came from hidden states under the old t, and rotating them again does
not bring back what the new t would have given. `fit` therefore fixes t once per call, from the
longest that its sequences can get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from longwave.rotary import ScaledRotary

HOOKS = ("generate", "_prepare_generated_length", "save_pretrained")


def install_hooks(model: PreTrainedModel) -> None:
    """Make `generate` fix t for each call, and `save_pretrained` refuse a folder that could not be read back."""
    hooks: dict[str, Callable[..., Any]] = {"save_pretrained": _refuse_save}
    if isinstance(model, GenerationMixin):
        hooks |= {"generate": _generate, "_prepare_generated_length": _fit_generated_length}
    # On the instance: bound methods survive `copy.deepcopy` (they follow the copy), closures would not.
    vars(model).update({name: MethodType(hook, model) for name, hook in hooks.items()})


def remove_hooks(model: PreTrainedModel) -> None:
    """Give the model its class's own methods back."""
    for name in HOOKS:
        vars(model).pop(name, None)


@contextmanager
def factor_for_a_while(rotaries: list[ScaledRotary]) -> Iterator[None]:
    """Whatever t is fixed inside, put the steering back as it was."""
    before = [(rotary.factor, rotary.generating) for rotary in rotaries]
    try:
        yield
    finally:
        for rotary, (factor, generating) in zip(rotaries, before, strict=True):
            rotary.factor, rotary.generating = factor, generating


def rotaries_of(model: nn.Module) -> list[ScaledRotary]:
    return [module for module in model.modules() if isinstance(module, ScaledRotary)]


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own `generate`, under one t chosen by `_fit_generated_length`."""
    with factor_for_a_while(rotaries_of(model)):
        return type(model).generate(model, *args, **kwargs)


def _fit_generated_length(model: Any, generation_config: Any, **prepared: Any) -> Any:
    """transformers settles the final length of the call here; a t fixed by the user is left alone."""
    generation_config = type(model)._prepare_generated_length(model, generation_config, **prepared)
    length = generation_config.max_length
    if prepared["model_input_name"] == "inputs_embeds":  # max_length then counts without the prompt
        length += prepared["inputs_tensor"].shape[1] - prepared["input_ids_length"]
    for rotary in rotaries_of(model):
        rotary.start_generating(length)
    return generation_config


def _refuse_save(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that transformers loads without the extension. "
        "Use longwave.save(model, folder), or longwave.restore(model) first for the plain model."
    )
