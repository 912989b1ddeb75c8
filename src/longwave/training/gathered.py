"""The result of engines that share the weights among processes: gathered into a copy of the model on the CPU.

Rank 0 alone could not save: to gather a weight, all processes have to take part. A wrapped model cannot be saved
either, as its classes and its parameters are the engine's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")  # that engines put into names


def outline(network: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with its extension, whose parameters have shapes and no values; tied ones stay tied."""
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, empty)


def fill(copied: PreTrainedModel | None, network: nn.Module) -> None:
    """Give the outline the weights of the model that was trained, one by one. All processes have to call this.

    Arguments:
        copied: the outline; None in processes that save nothing.
        network: the model that it was made of, wrapped by its engine.
    """
    places = {} if copied is None else dict(copied.named_parameters())
    missing = set(places)
    for name, whole in _gathered(network):
        if copied is not None:
            values = whole.detach().to("cpu", places[name].dtype, copy=True)
            torch.utils.swap_tensors(places[name], nn.Parameter(values, places[name].requires_grad))
            missing.discard(name)
    if missing:
        raise RuntimeError(f"the engine has no {sorted(missing)[0]}")
    if copied is not None:
        own = dict(copied.named_buffers())
        for name, buffer in network.named_buffers():
            own[_plain(name)].copy_(buffer)


def _gathered(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter by the name that it has in the plain model, whole in all processes for the moment."""
    from torch.distributed.tensor import DTensor

    for name, parameter in network.named_parameters():
        if isinstance(parameter, DTensor):
            yield _plain(name), parameter.full_tensor()
        elif hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                yield _plain(name), parameter.data
        else:
            yield _plain(name), parameter.data


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
