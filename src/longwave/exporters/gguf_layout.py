"""What llama.cpp calls a model, and whether it can hold a snapshot's frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

NEAR = 1e-6  # of a frequency, relative: what float32 holds of it


@dataclass(frozen=True)
class Layout:
    """How llama.cpp has one transformers model type.

    Arguments:
        arch: its architecture there.
        interleaved: rotates pairs (2i, 2i+1), so that rows of q and k change places.
        factors: names of the tensors with frequency factors that its loader reads; () if it reads none.
        whole: rotates whole heads only.
    """

    arch: str
    interleaved: bool
    factors: tuple[str, ...]
    whole: bool = True


FREQS = ("rope_freqs.weight",)
_LLAMA = Layout("llama", True, FREQS)
_PAIRED = Layout("llama", False, FREQS)  # transformers has its rows interleaved already
LAYOUTS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,  # its own architecture differs in biases alone, which `llama` has too, and ignores factors
    "ministral": _LLAMA,
    "seed_oss": _LLAMA,
    "helium": _PAIRED,
    "ernie4_5": _PAIRED,
    "exaone4": Layout("exaone4", False, FREQS),
    "granite": Layout("granite", True, FREQS),
    "phi3": Layout("phi3", False, ("rope_factors_long.weight", "rope_factors_short.weight"), whole=False),
    "qwen3": Layout("qwen3", False, ()),
}
FACTOR_BLIND = (
    "cohere", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "gpt_neox", "olmo2", "olmo3", "phi",
    "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


@dataclass(frozen=True)
class Frequencies:
    """θ_i = base^(-2i/d) / (linear·factors_i): metadata, and factors [d/2] in float32 where there is a tensor."""

    base: float
    linear: float = 1.0
    factors: torch.Tensor | None = None


def layout_of(source: Source) -> Layout:
    """The layout of a model.

    Raises:
        ValueError: naming what llama.cpp, or this exporter, does not have.
    """
    kind, config = source.model_type, source.text_config
    if kind not in LAYOUTS:
        works = ", ".join(LAYOUTS)
        if kind in FACTOR_BLIND:
            raise ValueError(
                f"llama.cpp reads no frequency factors for {kind}. GGUF export works for {works}. Use --to hf."
            )
        raise ValueError(f"GGUF export does not know {kind}, only {works}. Use --to hf.")
    layout = LAYOUTS[kind]
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"llama.cpp's {layout.arch} has silu only, the model has {config.hidden_act}. Use --to hf.")
    if layout.whole and source.rotary.trajectory.rope.rotary_dim != head_dim(config):
        raise ValueError(f"llama.cpp's {layout.arch} rotates whole heads, the model a part of them. Use --to hf.")
    if kind == "phi3" and head_dim(config) * config.num_attention_heads != config.hidden_size:
        raise ValueError(
            "llama.cpp's phi3 needs hidden_size = heads x head_dim, which the model does not have. Use --to hf."
        )
    if kind == "exaone4" and config.sliding_window is not None:
        raise ValueError("GGUF export knows exaone4 without a sliding window only, and the model has one. Use --to hf.")
    if kind == "qwen3" and config.attention_bias:
        raise ValueError("llama.cpp's qwen3 has no attention biases, and the model has some. Use --to hf.")
    return layout


def check_window(source: Source, snapshot: Snapshot) -> None:
    """None of these architectures has a sliding window in llama.cpp."""
    window = getattr(source.text_config, "sliding_window", None)
    kinds = getattr(source.text_config, "layer_types", None) or ["sliding_attention"]
    if window is not None and window < snapshot.max_length and "sliding_attention" in kinds:
        raise ValueError(
            f"the model attends to the last {window} tokens only, llama.cpp would attend to all {snapshot.max_length}. "
            f"Export a length up to {window}, or use --to hf."
        )


def frequencies(source: Source, snapshot: Snapshot, layout: Layout) -> Frequencies:
    """The snapshot as llama.cpp reads it, by factors, or where it knows none by base and linear scaling, exactly.

    Raises:
        ValueError: if the architecture ignores factors and the frequencies are no geometric series.
    """
    base = source.rotary.trajectory.rope.base
    assert base is not None
    if layout.factors:
        return Frequencies(base, factors=snapshot.factors)
    found = geometric(snapshot)
    if found is None:
        raise ValueError(
            f"llama.cpp reads no frequency factors for {source.model_type}, and the frequencies at factor "
            f"{snapshot.factor:g} are no geometric series (as those of ntk and linear are), which another base could "
            "express. Use --to hf."
        )
    return found


def geometric(snapshot: Snapshot) -> Frequencies | None:
    """θ_i = b'^(-2i/d)/s through the first and the last frequency, if all the others are on it."""
    log_freq = snapshot.inv_freq.double().log()
    count = log_freq.numel()
    if count < 2:
        return None
    step = float(log_freq[0] - log_freq[-1]) / (count - 1)
    line = log_freq[0] - step * torch.arange(count, dtype=torch.float64, device="cpu")
    if step <= 0 or float((line - log_freq).abs().max()) > NEAR:
        return None
    linear = float((-log_freq[0]).exp())
    return Frequencies(math.exp(step * count), 1.0 if abs(linear - 1) < NEAR else linear)


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


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
