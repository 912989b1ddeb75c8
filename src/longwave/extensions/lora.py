"""What an adapter is made of, and the linear layers that it may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from longwave.attention.layers import attention_layers
from longwave.extensions.gate import CAPPED
from longwave.extensions.sites import find_sites
from longwave.extensions.steering import text_model

if TYPE_CHECKING:
    from peft import LoraConfig

FULL = "full"
SCALE = 2.0  # of BA: lora_alpha = 2·rank


@dataclass(frozen=True)
class LoRA:
    """What an adapter is made of.

    Arguments:
        rank: of ΔW = BA; `full` for the smaller side of each matrix, which is as free as ΔW itself.
        trained_factor: T of the gate.
        targets: names of linear layers, as in PEFT's `target_modules`; None for all in the decoder's layers.
        gate: its shape, see `Gate`; `none` for a LoRA that is on at all t, as PEFT has it.
        alpha: PEFT's `lora_alpha`; None for 2·rank.
        dropout: of the LoRA's input in training.
        config: PEFT's own, of an adapter that was saved; rank, targets, alpha and dropout are its.

    Raises:
        ValueError: for a rank that cannot be.
    """

    rank: int | str
    trained_factor: float
    targets: tuple[str, ...] | None = None
    gate: str = CAPPED
    alpha: float | None = None
    dropout: float = 0.0
    config: LoraConfig | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        if self.rank != FULL and not (whole and int(self.rank) >= 1):
            raise ValueError(f"the rank of an adapter must be a whole number >= 1 or {FULL!r}, got {self.rank!r}.")

    def configured(self, host: PreTrainedModel) -> LoraConfig:
        """PEFT's settings for a model.

        Raises:
            ValueError: for a target that the model does not have.
        """
        from peft import LoraConfig

        layers = linear_layers(host)
        return self.config or LoraConfig(**_settings_of(host, self, layers))


def linear_layers(host: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder's layers, by name.

    Raises:
        ValueError: where the rotary module is part of such a layer: t would be known too late.
    """
    text = text_model(host)
    attention = {id(layer) for layer in attention_layers(text)}
    blocks = [name.rpartition(".")[0] + "." for name, module in host.named_modules() if id(module) in attention]
    rotary = {id(site.module) for site in find_sites(host)}
    if any(id(module) in rotary and name.startswith(tuple(blocks)) for name, module in host.named_modules()):
        raise ValueError(f"{type(host).__name__} cannot have an adapter: its layers have rotary modules of their own.")
    return {
        name: module
        for name, module in host.named_modules()
        if name.startswith(tuple(blocks)) and hasattr(module, "in_features") and hasattr(module, "out_features")
    }


def _settings_of(host: PreTrainedModel, lora: LoRA, layers: dict[str, nn.Module]) -> dict[str, Any]:
    if lora.targets is not None:
        for target in lora.targets:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
                raise ValueError(f"no linear layer of the model is named {target}. Its layers are {known}.")
        layers = {
            name: layer
            for name, layer in layers.items()
            if any(f".{name}".endswith(f".{target}") for target in lora.targets)
        }
    names = sorted({name.rpartition(".")[2] for name in layers})
    elsewhere = {name.rpartition(".")[2] for name, _ in host.named_modules() if name not in layers}
    if elsewhere & set(names):  # layers of a vision tower have the same names
        names = sorted(layers)
    settings: dict[str, Any] = {
        "target_modules": names, "task_type": "CAUSAL_LM", "lora_dropout": lora.dropout, "bias": "none",
    }  # fmt: skip
    ranks = {name: min(int(layer.in_features), int(layer.out_features)) for name, layer in layers.items()}  # type: ignore[arg-type]
    if lora.rank != FULL:
        if int(lora.rank) > max(ranks.values()):
            raise ValueError(
                f"lora: r must be at most {max(ranks.values())}, the largest rank that these layers can have, got "
                f"{lora.rank}. r=full gives each layer its own."
            )
        alpha = SCALE * int(lora.rank) if lora.alpha is None else lora.alpha
        return settings | {"r": int(lora.rank), "lora_alpha": alpha}
    alphas = {name: SCALE * rank for name, rank in ranks.items()}
    return settings | {"r": 1, "lora_alpha": SCALE, "rank_pattern": ranks, "alpha_pattern": alphas}
