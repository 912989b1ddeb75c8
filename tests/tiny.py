"""A tiny random model of any causal-LM type that transformers knows, from rules on config field names."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LENGTH = 64  # the original length of every tiny model that has a config field for it
VOCABULARY = 128

SIZES: dict[str, Any] = {
    # width, depth, heads
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
                     "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
                     "decoder_attention_heads", "num_encoder_attention_heads",
                     "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "global_head_dim", "swa_head_dim",
                     "swa_v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    "qk_head_dim": 32,
    "rotary_dim": 8,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
                     "shared_intermediate_size", "attention_hidden_size", "dense_intermediate_size",
                     "expert_ffn_hidden_size", "ffn_hidden_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size",
                     "moe_shared_expert_intermediate_size", "block_ff_dim"), 32),
    # lengths and vocabulary
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "model_max_length",
                     "max_sequence_length", "max_source_positions", "max_target_positions"), LENGTH),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention",
                     "attention_window_size", "window_size", "swa_window_size"), 16),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
                     "num_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts",
                     "num_experts_per_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace",
                     "zero_expert_num"), 1),
    # low-rank and sparse attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_head_dim", "lora_rank"), 16),
    **dict.fromkeys(("index_n_heads", "index_topk", "o_groups"), 4),
    # state-space and linear attention
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_dt_rank", "time_step_rank", "chunk_size",
                     "mamba_chunk_size", "mamba_d_head", "mamba_head_dim", "lru_width_per_head",
                     "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "linear_num_heads"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    "lru_width": 64,
}  # fmt: skip
# What the rules cannot know: fields without a default, sizes that depend on one another.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 128},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba2": {"use_mem_rope": True},
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["linear_attention", "full_attention"]},
}
LATENT = "kv_lora_rank"  # latent attention has as many key heads as query heads, whatever the config says


def model_types() -> list[str]:
    """Every causal-LM type of the installed transformers."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The type's default config with every size that `SIZES` names made small, in sub-configs too."""
    return _shrink(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model in float32 and evaluation mode; raises whatever transformers raises if it cannot be built.

    Parameters that start at zero (gates, temperatures) are made random too: behind a closed gate, attention
    would not depend on positions.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float().eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _shrink(kind: type[PreTrainedConfig], overrides: dict[str, Any]) -> PreTrainedConfig:
    default = kind()
    values = vars(default)
    full_depth = values.get("num_hidden_layers")
    depth = _depth(values)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            fields[name] = _shrink(type(value), {}).to_dict()
        elif isinstance(value, list) and len(value) == full_depth and name not in fields:
            fields[name] = value[:depth]
        elif name == "num_hidden_layers":
            fields[name] = depth
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            fields[name] = min(value, SIZES[name])
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            fields[name] = 1
    if LATENT in values and "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = SIZES["num_attention_heads"]
    return kind(**(fields | overrides))


def _depth(values: dict[str, Any]) -> int:
    """Two layers, or as many as it takes to have one of each kind that the default model mixes."""
    kinds = values.get("layer_types") or values.get("layers_block_type") or []
    return max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
