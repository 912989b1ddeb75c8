"""What the plugin cannot serve: models and engines at the start, LoRAs of a request."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from longwave.files import read_object
from longwave.layout import ADAPTER
from longwave.serving.profiles import OutOfRange
from longwave.serving.vllm.band_checks import reason_of
from longwave.serving.vllm.configs import profiles_of


def refuse(vllm_config: Any, model: Any) -> None:
    """Refuse what the plugin cannot serve.

    Raises:
        ValueError: naming it.
    """
    reason = _reason(vllm_config, model)
    if reason is not None:
        raise ValueError(f"longwave cannot serve rope profiles here: {reason}")


def _reason(vllm_config: Any, model: Any) -> str | None:
    from vllm.model_executor.layers.attention import Attention, MLAAttention

    profiles = profiles_of(vllm_config.model_config)
    assert profiles is not None
    modules = list(model.modules())
    if vllm_config.kv_transfer_config is not None:
        return "caches that travel between engines (kv_transfer_config) do not carry the length factor."
    if getattr(vllm_config.parallel_config, "prefill_context_parallel_size", 1) > 1:
        return "prefill context parallelism cuts the batch apart. Start without it."
    if any(isinstance(module, MLAAttention) for module in modules):
        return "the model has latent attention (MLA), whose queries pass the rotary module only in part."
    text = vllm_config.model_config.hf_text_config
    if getattr(text, "llama_4_scaling", None) or getattr(text, "attn_temperature_tuning", None):
        return f"{text.model_type} reads positions in its attention, too."
    if profiles.scales_queries and any(
        isinstance(module, Attention) and module.sliding_window is not None for module in modules
    ):
        return "log-n leaves sliding layers alone, and here they share the rotary module with the others."
    if profiles.scales_queries and _reads_tables(model):
        return (
            f"the attention of {type(model).__name__} reads cos and sin itself, and log-n would not reach its queries."
        )
    if (reason := _part_of_heads(model)) is not None and (profiles.scales_queries or profiles.bands is not None):
        return reason
    if (reason := reason_of(vllm_config, model, profiles)) is not None:
        return reason
    folder = Path(vllm_config.model_config.model)
    adapters = [folder / each.adapter for each in profiles.profiles if each.adapter is not None]
    return _lora_reason(vllm_config.lora_config, adapters) if adapters else None


def _part_of_heads(model: Any) -> str | None:
    """Which attention hands a part of its heads alone to the rotary module: what lies where in them is not known."""
    from vllm.model_executor.layers.attention import Attention

    from longwave.serving.vllm.tables import rotary_modules

    sizes = {module.head_size for *_, module in rotary_modules(model)}
    for name, module in model.named_modules():
        if isinstance(module, Attention) and sizes and module.head_size not in sizes:
            return f"{name} has heads of {module.head_size}, and hands a part of them to its rotary module."
    return None


def _reads_tables(model: Any) -> bool:
    """Whether the model's own code takes rows of the table, past the rotary module that scales queries."""
    from longwave.serving.vllm.tables import rotary_modules

    kinds = {type(parent) for _, parent, *_ in rotary_modules(model)}
    every = {kind for parent in kinds for kind in parent.__mro__ if kind.__module__.startswith("vllm.model_executor")}
    return any("cos_sin_cache" in inspect.getsource(kind) for kind in every if not kind.__name__.startswith("LogN"))


def _lora_reason(lora: Any, folders: list[Path]) -> str | None:
    """What is wrong with the LoRAs, of which the model has one for each t > 1, or with the places for them."""
    from vllm.platforms import current_platform

    adapters = len(folders)
    lacking = next((each for each in folders if not (each / ADAPTER).is_file()), None)
    if lacking is not None:
        return f"there is no adapter in {lacking}. Give the model's folder, not its name on the hub."
    rank = max(int(read_object(each / ADAPTER)["r"]) for each in folders)
    options = f"--enable-lora --max-loras {adapters + 1} --max-lora-rank {rank} (or the next rank that vLLM has)"
    if lora is None:
        return f"the weights follow the length factor by a LoRA. Start with {options}."
    if lora.max_lora_rank < rank:
        held = lora.max_lora_rank
        return f"the LoRAs of the model have rank {rank}, and vLLM was started for {held}. Start with {options}."
    # vLLM's kernels for CPUs read the last place where a request has no LoRA (index -1). It must stay empty.
    if current_platform.is_cpu() and lora.max_loras <= adapters:
        return (
            f"on a CPU, requests without a LoRA would get the one in the last of {lora.max_loras} places. Start with "
            f"--max-loras {adapters + 1}, and more if you serve other LoRAs, too."
        )
    return None


def refuse_adapter(request: Any, vllm_config: Any) -> None:
    """On CPUs the last place for LoRAs must stay empty, see `_lora_reason`: no others beside those of the profiles."""
    from vllm.platforms import current_platform

    profiles = profiles_of(vllm_config.model_config)
    if profiles is None or request.lora_request is None or not current_platform.is_cpu():
        return
    if any(each.adapter for each in profiles.profiles):
        raise OutOfRange("on a CPU this model is served with its own adapters alone. Name no other.")
