"""Which models CTranslate2 runs as transformers does."""

from __future__ import annotations

from longwave.exporters.base import Unsupported
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

# Families whose logits the engine reproduces, with the activations that it has for them. Of its other rotary ones,
# GPT-J and CodeGen have no rotary module to extend; the loaders of Gemma 2 and later leave out soft caps or frequencies
# per layer type; those of Phi, Phi-2 and RefinedWeb read the configs of remote code.
SILU, GELU, GELU_TANH = ("silu", "swish"), ("gelu", "gelu_python"), ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
FAMILIES = {
    "falcon": GELU,
    "gemma": ("gelu_pytorch_tanh",),
    "gpt_neox": (*GELU, *GELU_TANH, "relu"),
    "llama": SILU,
    "mistral": SILU,
    "phi3": SILU,
    "qwen2": SILU,
    "qwen3": SILU,
}
# What the loaders take for granted, and leave out in silence where it is otherwise.
GRANTED = {
    "falcon": {"new_decoder_architecture": False},
    "gemma": {"attention_bias": False, "use_bidirectional_attention": False},
    "gpt_neox": {"attention_bias": True},
}


def check_family(source: Source, snapshot: Snapshot) -> None:
    """Raises `Unsupported` for a family, an activation or a window that the engine does not have."""
    config = source.skeleton.config
    family = config.model_type
    if family not in FAMILIES:
        raise Unsupported(f"CTranslate2 cannot run {family}. It can run: {', '.join(FAMILIES)}.")
    activation = getattr(config, "activation", None) or config.hidden_act
    if activation not in FAMILIES[family]:
        allowed = ", ".join(FAMILIES[family])
        raise Unsupported(f"CTranslate2 runs {family} with {allowed}, not with {activation}.")
    for name, value in GRANTED.get(family, {}).items():
        if bool(getattr(config, name, value)) != value:
            raise Unsupported(f"CTranslate2 runs {family} only with {name} {value}.")
    windowed = {"full_attention", *(getattr(config, "layer_types", None) or ())} != {"full_attention"}
    if family in ("mistral", "phi3"):  # the others say it by layer
        windowed |= (config.sliding_window or snapshot.max_length) < snapshot.max_length
    if windowed:
        raise Unsupported(
            f"{source.path} attends within a sliding window, which CTranslate2 does not reproduce at "
            f"{snapshot.max_length} tokens."
        )
