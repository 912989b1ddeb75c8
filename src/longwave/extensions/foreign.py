"""Adapters that PEFT put on a model itself, by `get_peft_model` or `add_adapter`, seen as ones without a gate."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from longwave.extensions.adapter import NAME, Adapter, lora_layers
from longwave.extensions.gate import NONE, Gate
from longwave.extensions.sites import host_of

UNKNOWN = (  # settings of PEFT that change what a layer computes in other ways than A, B and a scale
    "use_dora", "lora_bias", "bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "alora_invocation_tokens", "target_parameters",
)  # fmt: skip
MERGE = "Or merge it into its model first: model = model.merge_and_unload()."


def unwrapped(model: Any, function: str) -> PreTrainedModel:
    """The transformers model, which a PeftModel may hold.

    Raises:
        ValueError: for any other wrapper, and for what is no model.
    """
    if isinstance(model, PreTrainedModel):
        return model
    if is_peft(model):
        return host_of(model)
    raise ValueError(
        f"{function} takes the transformers model, or a PeftModel around it, got {type(model).__name__}. "
        "Unwrap it first."
    )


def is_peft(model: Any) -> bool:
    """Whether it is a PeftModel. PEFT is not imported for that."""
    return any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft") for kind in type(model).__mro__)


def foreign_adapter(model: nn.Module) -> Adapter | None:
    """The LoRA that PEFT put on a model; None where there is none, or where it is one of longwave.

    Raises:
        ValueError: for an adapter that longwave cannot save and load: another kind than LoRA, several, one that
            is merged.
    """
    host = host_of(model)
    configs: dict[str, Any] = vars(host).get("peft_config") or getattr(model, "peft_config", None) or {}
    if not configs or set(configs) == {NAME}:
        return None
    if len(configs) > 1:
        raise ValueError(f"the model has several adapters of PEFT ({', '.join(configs)}). Keep one: delete_adapter.")
    ((name, config),) = configs.items()
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ValueError(f"the model has an adapter of PEFT of type {kind}. longwave trains and saves LoRA. {MERGE}")
    for setting in UNKNOWN:
        if (value := getattr(config, setting, None)) not in (None, False, "none", [], {}):
            raise ValueError(
                f"the model's LoRA has {setting} {value!r}, which longwave cannot save beside an extension. Make it "
                f"without. {MERGE}"
            )
    places = lora_layers(host)
    if any(layer.merged for _, _, layer in places):
        raise ValueError("the model's LoRA is merged for the moment. Call unmerge_adapter() first.")
    gate = Gate(None, 1.0, NONE)  # type: ignore[arg-type]  # without a gate nothing asks for t
    return Adapter(host, config, gate, places=places, name=name)


def require_trainable(adapter: Adapter) -> None:
    """A `ValueError` for an adapter that PEFT has loaded for inference."""
    if not all(parameter.requires_grad for parameter in adapter.parameters()):
        raise ValueError(
            "the model's LoRA is frozen, as PEFT loads it for inference. Load it with "
            "PeftModel.from_pretrained(..., is_trainable=True)."
        )
