"""Nothing that a run is to learn may be frozen: PEFT freezes what it finds on a model, the extension too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from longwave.extensions.handle import extension
from longwave.training.learned import PARTS

WHAT = {
    "field": "the learned frequencies", "heads": "the scalars of heads", "adapter": "the weights of the LoRA",
}  # fmt: skip


def unfreeze(model: nn.Module) -> nn.Module:
    """Let all parts of a model's extension have a gradient again; the model's own weights stay as they are.

    Call it after `get_peft_model` and `prepare_model_for_kbit_training`. Both freeze every parameter that they find.

    Returns:
        The same model.

    Raises:
        ValueError: if the model is not extended.
    """
    for parameters in extension(model).learned.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    return model


def require_unfrozen(model: nn.Module) -> None:
    """Frequencies and scalars have a gradient, and a LoRA has it in all its layers or in none, where it is not trained.

    Raises:
        ValueError: naming the part that is frozen.
    """
    for part, parameters in extension(model).learned.items():
        frozen = sum(not parameter.requires_grad for parameter in parameters)
        if frozen and (part in PARTS or frozen < len(parameters)):
            raise ValueError(
                f"{WHAT[part]} are frozen ({frozen} of {len(parameters)} parameters): PEFT freezes all that it finds "
                "on a model. Call longwave.unfreeze(model) after it, then train."
            )


def require_optimized(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer has every part of the extension that has a gradient.

    Raises:
        ValueError: naming the part that is not there.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for part, parameters in extension(model).learned.items():
        lacking = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in held]
        if lacking:
            raise ValueError(
                f"the optimizer does not have {WHAT[part]} ({len(lacking)} of {len(parameters)} parameters): it was "
                "made before they could be trained. Make it after longwave.extend and longwave.unfreeze."
            )


@contextmanager
def counts_as_adapted(model: PreTrainedModel) -> Iterator[None]:
    """Let the Trainer take a quantized model: it looks for an adapter of PEFT's own, and refuses what has another."""
    name = "_hf_peft_config_loaded"
    before = vars(model).get(name)
    if getattr(model, "is_quantized", False):
        vars(model)[name] = True
    try:
        yield
    finally:
        vars(model).pop(name, None)
        if before is not None:
            vars(model)[name] = before


def require_learnable_weights(model: PreTrainedModel, *, adapted: bool) -> None:
    """A `ValueError` for a quantized model whose weights are to be trained: numbers of 4 or 8 bits have no gradient."""
    if getattr(model, "is_quantized", False) and not adapted:
        raise ValueError(
            "the model's weights are quantized and cannot be trained. Train a LoRA beside them (lora r=16), or the "
            "extension alone (freeze weights)."
        )


def frozen_names(model: nn.Module) -> set[str]:
    """Tensors of the model's state that training does not change: frozen parameters, and what quantizes them."""
    buffers = {name for name, _ in model.named_buffers()}
    learned = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    state: Iterable[tuple[str, torch.Tensor]] = model.state_dict(keep_vars=True).items()
    return {name for name, tensor in state if id(tensor) not in learned and name not in buffers}
