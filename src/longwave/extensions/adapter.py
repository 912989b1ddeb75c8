"""An adapter that follows t: LoRA by PEFT, W(t) = W + g(t)·ΔW, and ΔW is off within L."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longwave.attention.layers import attention_layers
from longwave.extensions.gate import NONE, Gate
from longwave.extensions.lora import FULL as FULL
from longwave.extensions.lora import LoRA as LoRA
from longwave.extensions.mounts import scaled_inside
from longwave.extensions.steering import text_model

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "longwave"  # of the adapter among PEFT's
PEFT = ("peft_config", "_hf_peft_config_loaded")  # what transformers tells a model with an adapter by
DIAL = "_longwave_dial"  # on an attention layer
GATED = "Gated"  # begins the name of a class with the gate


@dataclass(eq=False)
class Adapter:
    """The adapter of a model, on or off.

    Arguments:
        host: the model.
        config: PEFT's.
        gate: g(t).
        places: parent, name, and the layer with ΔW that takes the place of the parent's own.
        trainable: which of the model's own parameters had a gradient before.
        name: the adapter's among PEFT's.
        watched: the attention layers. From each on t is that of its own position ids, also where it runs again for
            its gradient.
    """

    host: PreTrainedModel
    config: LoraConfig
    gate: Gate
    places: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    trainable: list[nn.Parameter] = field(default_factory=list)
    watched: list[nn.Module] = field(default_factory=list)
    name: str = NAME

    def watch(self) -> None:
        """Let each attention layer tell the dial its positions."""
        for layer in self.watched:
            vars(layer)[DIAL] = self.gate.dial
            layer.register_forward_pre_hook(follow_positions, with_kwargs=True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """A and B of all layers."""
        for _, _, layer in self.places:
            yield layer.lora_A[self.name].weight
            yield layer.lora_B[self.name].weight

    def delta(self, place: int, t: float) -> Tensor:
        """g(t)·ΔW of one layer, float32, of the shape of its weight."""
        layer = self.places[place][2]
        return self.gate.at(t) * layer.get_delta_weight(self.name).detach().float()

    @property
    def has_left_its_start(self) -> bool:
        """Whether ΔW is anything but 0."""
        return any(bool(layer.lora_B[self.name].weight.any()) for _, _, layer in self.places)

    @property
    def is_gated(self) -> bool:
        """Whether ΔW depends on t, and is off within L."""
        return self.gate.shape != NONE

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """For the length of a `with` block the model has its own layers, and nothing else changes."""
        kept = {key: vars(self.host).pop(key) for key in PEFT if key in vars(self.host)}
        for parent, name, layer in self.places:
            setattr(parent, name, layer.get_base_layer())
        try:
            yield
        finally:
            for parent, name, layer in self.places:
                setattr(parent, name, layer)
            vars(self.host).update(kept)

    def take_off(self) -> None:
        """Give the model its own layers back."""
        for parent, name, layer in self.places:
            setattr(parent, name, layer.get_base_layer())
        vars(self.host).pop("peft_config", None)
        for layer in self.watched:
            vars(layer).pop(DIAL, None)
            for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is follow_positions]:
                del layer._forward_pre_hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)
        for parameter in self.trainable:
            parameter.requires_grad_(True)

    def put_back(self) -> None:
        """Put on what `take_off` took off."""
        self.freeze()
        for parent, name, layer in self.places:
            setattr(parent, name, layer)
        vars(self.host)["peft_config"] = {self.name: self.config}
        self.watch()

    def freeze(self) -> None:
        """The model's own weights have no gradient from here on; the parts of the extension keep theirs."""
        parts = {id(parameter) for _, _, rotary in scaled_inside(self.host) for parameter in rotary.parameters()}
        parts |= {id(parameter) for parameter in self.parameters()}
        own = [parameter for parameter in self.host.parameters() if id(parameter) not in parts]
        self.trainable = [parameter for parameter in own if parameter.requires_grad]
        for parameter in self.trainable:
            parameter.requires_grad_(False)


def put_adapter(host: PreTrainedModel, gate: Gate, lora: LoRA) -> Adapter:
    """Put a new adapter on a model, ΔW = 0; its own weights are frozen then, the parts of an extension are not.

    Arguments:
        host: the model.
        gate: g(t).
        lora: what to make.

    Raises:
        ValueError: for a model whose layers ask for t before it is known, has an adapter, or no such layers.
    """
    from peft import inject_adapter_in_model

    if lora_layers(host):
        raise ValueError("the model has an adapter of PEFT already. Merge it (merge_and_unload), then extend.")
    config = lora.configured(host)
    flags = [(parameter, parameter.requires_grad) for parameter in host.parameters()]
    inject_adapter_in_model(config, host, NAME)
    for parameter, flag in flags:  # PEFT froze all of them, the learned frequencies, too
        parameter.requires_grad_(flag)
    adapter = Adapter(host, config, gate, places=lora_layers(host))
    if adapter.is_gated:
        for _, _, layer in adapter.places:
            kind: Any = type(layer)
            layer.__class__ = gated(kind)
            layer.gate = gate
        adapter.watched = attention_layers(text_model(host))
        adapter.watch()
        gate.dial.noted = True
    adapter.freeze()
    for parameter in (own := list(adapter.parameters())):
        parameter.requires_grad_(True)
    gate.beside = own[0]
    gate.settle()
    return adapter


def lora_layers(host: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The layers that PEFT has put in the place of linear ones: parent, name, layer."""
    from peft.tuners.lora import LoraLayer

    found = []
    for path, layer in host.named_modules():
        if isinstance(layer, LoraLayer):
            parent, _, name = path.rpartition(".")
            found.append((host.get_submodule(parent), name, layer))
    return found


def follow_positions(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before an attention layer: tell the dial its positions."""
    positions = kwargs.get("position_ids")
    if positions is not None and not torch.compiler.is_compiling():
        vars(layer)[DIAL].follow(positions)


class Gated:
    """A layer of PEFT whose ΔW counts by a gate. Where all of the gate is 0, the layer is the model's own."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        gate = self.gate.of(x)
        if gate is None and not (self.training and torch.is_grad_enabled()):
            return result
        down, up = self.lora_A[NAME], self.lora_B[NAME]
        if gate is None:  # a step at t = 1 has a gradient, of 0: DDP asks for it
            return result + (0.0 * (down.weight.sum() + up.weight.sum())).to(result.dtype)
        inner = down(self.lora_dropout[NAME](x.to(down.weight.dtype)))
        return result + (up((inner * gate).to(inner.dtype)) * self.scaling[NAME]).to(result.dtype)


@cache
def gated(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of PEFT's with the gate. pickle finds it under its name in this module."""
    name = GATED + kind.__name__
    return type(name, (Gated, kind), {"__module__": __name__, "__qualname__": name})


def __getattr__(name: str) -> Any:
    if name.startswith(GATED):
        from peft.tuners import lora

        return gated(getattr(lora, name.removeprefix(GATED)))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
