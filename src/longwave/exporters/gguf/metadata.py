"""The keys of a GGUF file about the model; those of the tokenizer are the `Vocabulary`'s."""

from __future__ import annotations

from typing import Any

from longwave.exporters.gguf.frequencies import Frequencies
from longwave.exporters.source import Source, head_dim
from longwave.trajectory import Snapshot


def add_metadata(writer: Any, source: Source, snapshot: Snapshot, values: Frequencies) -> None:
    """Every key that llama.cpp reads about the model, but for the tokenizer's."""
    config, size = source.text_config, head_dim(source.text_config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(snapshot.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(snapshot.rotary_dim)
    writer.add_rope_freq_base(values.base)
    if values.linear != 1:
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(values.linear)
    if snapshot.attention_scaling != 1:
        writer.add_rope_scaling_attn_factors(snapshot.attention_scaling)
    if source.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
