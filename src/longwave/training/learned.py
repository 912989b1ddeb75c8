"""What an extension learns: its parameters, their groups for the optimizer, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from longwave.extensions.handle import extension

PARTS = ("field", "heads")  # parts of an extension with a learning rate of their own


def learned_parameters(model: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    """The parameters of the extension's parts by name: of all parts, or of those that are named."""
    found = extension(model).learned
    learned = {id(parameter) for part in parts or found for parameter in found[part]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in learned}


def field_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the model's trajectories by name."""
    return learned_parameters(model, "field")


def trained(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of a part that training changes."""
    return [parameter for parameter in extension(model).learned[part] if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, decayed: Collection[str], *, weight_decay: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimizer: the parameters named in `decayed`, the others, and parts of the extension.

    Arguments:
        rates: learning rates of parts, by name.
    """
    part_of = {name: part for part in rates for name in learned_parameters(model, part)}
    groups: dict[str, dict[str, Any]] = {
        "decayed": {"params": [], "weight_decay": weight_decay},
        "plain": {"params": [], "weight_decay": 0.0},
        **{part: {"params": [], "weight_decay": 0.0, "lr": rate} for part, rate in rates.items()},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[part_of.get(name, "decayed" if name in decayed else "plain")]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def clip_separately(
    model: nn.Module,
    parts: Mapping[str, list[nn.Parameter]],
    clip: Callable[[list[nn.Parameter], float], Any],
    most: float,
) -> tuple[Any, dict[str, Any]]:
    """Clip the gradients of each part and of the weights to the norm `most`; their norm and the parts' before.

    A frequency acts on an angle times the position, so in windows of 16 L the field's gradient can be ten and more
    times the weights'. Under one norm for all it would scale down what such windows teach the weights.
    """
    ours = {id(parameter) for parameters in parts.values() for parameter in parameters}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in ours]
    norms = {part: clip(parameters, most) for part, parameters in parts.items()}
    total = sum(norm**2 for norm in norms.values()) + clip(weights, most) ** 2
    return total**0.5, norms


def require_gradient(field: list[nn.Parameter]) -> None:
    """The first backward pass reached the field."""
    if field and all(parameter.grad is None for parameter in field):
        raise ValueError(
            "no gradient reaches the learned frequencies: training stopped. Find what cuts the graph between "
            "them and the loss (a hook, a wrapper, torch.nn.DataParallel) and train without it."
        )
