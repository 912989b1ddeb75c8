"""What the frequencies are learned with: its parameters, their groups for the optimizer, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from longwave.extensions.handle import extension


def field_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the model's trajectories by name."""
    learned = {id(parameter) for trajectory in extension(model).trajectories for parameter in trajectory.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in learned}


def trained_field(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the trajectories that training changes."""
    return [parameter for parameter in field_parameters(model).values() if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, decayed: Collection[str], *, weight_decay: float, field_lr: float
) -> list[dict[str, Any]]:
    """Groups of an optimizer: the parameters named in `decayed`, the others, and the field at its own rate."""
    field = field_parameters(model)
    groups: dict[str, dict[str, Any]] = {
        "decayed": {"params": [], "weight_decay": weight_decay},
        "plain": {"params": [], "weight_decay": 0.0},
        "field": {"params": [], "weight_decay": 0.0, "lr": field_lr},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = "field" if name in field else "decayed" if name in decayed else "plain"
            groups[group]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def clip_separately(
    model: nn.Module, field: list[nn.Parameter], clip: Callable[[list[nn.Parameter], float], Any], most: float
) -> tuple[Any, Any]:
    """Clip the gradients of field and weights, each to the norm `most`; the norms of both and of the field before.

    A frequency acts on an angle times the position, so in windows of 16 L the field's gradient can be ten and more
    times the weights'. Under one norm for both it would scale down what such windows teach the weights.
    """
    ours = {id(parameter) for parameter in field}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in ours]
    norm = clip(field, most)
    return (norm**2 + clip(weights, most) ** 2) ** 0.5, norm


def require_gradient(field: list[nn.Parameter]) -> None:
    """The first backward pass reached the field."""
    if field and all(parameter.grad is None for parameter in field):
        raise ValueError(
            "no gradient reaches the learned frequencies: training stopped. Find what cuts the graph between "
            "them and the loss (a hook, a wrapper, torch.nn.DataParallel) and train without it."
        )
