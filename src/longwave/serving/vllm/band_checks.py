"""What attention by bands cannot serve, at the start."""

from __future__ import annotations

from typing import Any

from longwave.serving.profiles import Profiles

BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")  # whose metadata have seq_lens, query_start_loc and block_table
GRAPHS = '--compilation-config \'{"cudagraph_mode": "PIECEWISE"}\''  # attention is then outside of the graphs


def reason_of(vllm_config: Any, model: Any, profiles: Profiles) -> str | None:
    """Why the bands of a folder cannot be served; None if they can, or if there are none."""
    from longwave.serving.banded import method_of
    from longwave.serving.vllm.banding import attention_modules

    if profiles.bands is None:
        return None
    if (reason := _engine_reason(vllm_config)) is not None:
        return reason
    modules = list(attention_modules(model))
    if not modules:
        return f"{type(model).__name__} has no attention module of vLLM's own."
    try:
        method_of(profiles)
    except (TypeError, ValueError) as error:
        return f"the folder's attention method cannot be made ({error}). Export the model again."
    return next(filter(None, (_layer_reason(name, module) for name, module in modules)), None)


def _engine_reason(vllm_config: Any) -> str | None:
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs():
        return f"full CUDA graphs ({mode.name}) would hold the attention of one batch for all. Start with {GRAPHS}."
    if parallel.use_ubatching:
        return "batches that are cut in two (--enable-dbo) lose which request has bands. Start without it."
    if parallel.decode_context_parallel_size > 1:
        return "decode context parallelism spreads the keys of a request over ranks. Start without it."
    if getattr(compilation.pass_config, "fuse_attn_quant", None):
        return "bands write outputs that are not quantized. Start with fuse_attn_quant switched off."
    return None


def _layer_reason(name: str, module: Any) -> str | None:
    """Why a layer cannot have bands."""
    from vllm.utils.torch_utils import is_quantized_kv_cache
    from vllm.v1.attention.backend import AttentionType

    impl, backend = module.impl, module.attn_backend.get_name()
    special = {
        "sliding window": module.sliding_window,
        "sinks": module.has_sink or None,
        "ALiBi": getattr(impl, "alibi_slopes", None),
        "a soft cap": getattr(impl, "logits_soft_cap", None) or None,
        "the cache of another layer": module.kv_sharing_target_layer_name,
        "values of another size than its keys": module.head_size_v if module.head_size_v != module.head_size else None,
    }
    found = next((what for what, value in special.items() if value is not None), None)
    if found is not None:
        return f"{name} has {found}, and bands are for layers without."
    if module.attn_type != AttentionType.DECODER:
        return f"{name} is attention of another kind ({module.attn_type}), and bands are for decoders."
    if is_quantized_kv_cache(module.kv_cache_dtype):
        return (
            f"bands need a cache that is not quantized (--kv-cache-dtype is {module.kv_cache_dtype}). Start with auto."
        )
    if backend not in BACKENDS:
        return (
            f"bands run over the attention backends {', '.join(BACKENDS)}, and {name} has {backend}. Choose one of "
            "them by --attention-backend."
        )
    return None
