"""What llama.cpp calls a model, and which models it runs as transformers does."""

from __future__ import annotations

from dataclasses import dataclass

from longwave.exporters.base import Unsupported
from longwave.exporters.source import Source, head_dim
from longwave.trajectory import Snapshot


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


def layout_of(source: Source) -> Layout:
    """The layout of a model.

    Raises:
        Unsupported: naming what llama.cpp, or this exporter, does not have.
    """
    kind, config = source.model_type, source.text_config
    if kind not in LAYOUTS:
        works = ", ".join(LAYOUTS)
        if kind in FACTOR_BLIND:
            raise Unsupported(f"llama.cpp reads no frequency factors for {kind}. GGUF export works for {works}.")
        raise Unsupported(f"GGUF export does not know {kind}, only {works}.")
    layout = LAYOUTS[kind]
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        raise Unsupported(f"llama.cpp's {layout.arch} has silu only, the model has {config.hidden_act}.")
    if layout.whole and source.rope.rotary_dim != head_dim(config):
        raise Unsupported(f"llama.cpp's {layout.arch} rotates whole heads, the model a part of them.")
    if kind == "phi3" and head_dim(config) * config.num_attention_heads != config.hidden_size:
        raise Unsupported("llama.cpp's phi3 needs hidden_size = heads x head_dim, which the model does not have.")
    if kind == "exaone4" and config.sliding_window is not None:
        raise Unsupported("GGUF export knows exaone4 without a sliding window only, and the model has one.")
    if kind == "qwen3" and config.attention_bias:
        raise Unsupported("llama.cpp's qwen3 has no attention biases, and the model has some.")
    return layout


def check_window(source: Source, snapshot: Snapshot) -> None:
    """None of these architectures has a sliding window in llama.cpp."""
    window = getattr(source.text_config, "sliding_window", None)
    kinds = getattr(source.text_config, "layer_types", None) or ["sliding_attention"]
    if window is not None and window < snapshot.max_length and "sliding_attention" in kinds:
        raise Unsupported(
            f"the model attends to the last {window} tokens only, llama.cpp would attend to all {snapshot.max_length}. "
            f"Export a length up to {window}."
        )
