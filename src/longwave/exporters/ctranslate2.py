"""CTranslate2: its own converter for the weights, the factors in its `Su` rotary embedding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longwave.checkpoints.load import load
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.exporters.base import (
    ROUNDING,
    Answer,
    EngineMissing,
    partial_heads,
    quantization_of,
    refuse_quantized,
    stored_type,
    weight_notes,
)
from longwave.exporters.hf import code_notes, copy_beside
from longwave.exporters.source import Source
from longwave.extensions.attach import restore
from longwave.files import read_json
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
FACTORS = ("rotary_scaling_short_factor", "rotary_scaling_long_factor")


class CTranslate2:
    """Folder with `model.bin`, `config.json` and `vocabulary.json`, and the tokenizer's files beside them.

    Every self-attention gets the type `Su` and the factors as both its short and its long ones. The engine computes
    θ_i = 1/(λ_i·b^(2i/d)) from them in float32. Its attention factor on cos and sin is √(1 + ln m / ln n), of
    m = ⌊max / original⌋ and n = original_max_position_embeddings, which decide nothing else here: `lengths_for`
    finds the pair that gives the snapshot's.

    The converter holds the whole model in memory, unlike other targets: that is the library's way.

    Source: OpenNMT/CTranslate2, src/layers/attention_layer.cc; python/ctranslate2/converters/transformers.py.
    """

    name = "ctranslate2"
    summary = "CTranslate2, on CPU and GPU, through its own converter; the whole model is held in memory"
    quantizations: tuple[str, ...] = (
        "keep", "float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16",
    )  # fmt: skip

    def check(self, source: Source, snapshot: Snapshot) -> list[str]:
        """Raises for a family, a window or an attention scaling that the engine does not have."""
        self.engine()
        refuse_quantized(source, self.name)
        if method := quantization_of(source):
            raise ValueError(
                f"config.json of {source.model} asks for quantization ({method}), and ctranslate2 export loads the "
                "plain model. Remove quantization_config from config.json, or use --to gguf."
            )
        config = source.skeleton.config
        family = config.model_type
        if family not in FAMILIES:
            raise ValueError(f"CTranslate2 cannot run {family}. It can run: {', '.join(FAMILIES)}. Export to hf.")
        activation = getattr(config, "activation", None) or config.hidden_act
        if activation not in FAMILIES[family]:
            allowed = ", ".join(FAMILIES[family])
            raise ValueError(f"CTranslate2 runs {family} with {allowed}, not with {activation}. Export to hf.")
        for name, value in GRANTED.get(family, {}).items():
            if bool(getattr(config, name, value)) != value:
                raise ValueError(f"CTranslate2 runs {family} only with {name} {value}. Export to hf.")
        windowed = {"full_attention", *(getattr(config, "layer_types", None) or ())} != {"full_attention"}
        if family in ("mistral", "phi3"):  # the others say it by layer
            windowed |= (config.sliding_window or snapshot.max_length) < snapshot.max_length
        if windowed:
            raise ValueError(
                f"{source.path} attends within a sliding window, which CTranslate2 does not reproduce at "
                f"{snapshot.max_length} tokens. Export to hf."
            )
        lengths_for(snapshot.attention_scaling)
        return [*weight_notes(source, kept=False), *code_notes(source), *partial_heads(source, snapshot)]

    def size(self, source: Source, quantize: str | None) -> int:
        if quantize is None or quantize == "keep":
            return sum(path.stat().st_size for path in source.shards)
        bits = int(re.findall(r"\d+", quantize)[0])
        return sum(parameter.numel() for parameter in source.skeleton.parameters()) * bits // 8

    def tolerance(self, source: Source, quantize: str | None) -> float | None:
        return ROUNDING.get(stored_type(source) if quantize in (None, "keep") else quantize)

    def write(self, source: Source, snapshot: Snapshot, folder: Path, quantize: str | None) -> None:
        """Convert the weights, put the factors in, copy the tokenizer.

        Raises:
            ValueError: if the library's loader does not take the model.
        """
        from ctranslate2.converters.transformers import _MODEL_LOADERS
        from ctranslate2.specs.model_spec import NumpyVariable

        model = restore(load(source.path, dtype="auto")).requires_grad_(False)
        tokenizer = load_tokenizer(source.tokenizer)
        rope = source.rotary.trajectory.rope
        assert rope.base is not None
        weights = sum(tensor.numel() for tensor in model.state_dict().values())
        _as_the_loader_expects(model, rope.base, snapshot)
        try:
            spec = _MODEL_LOADERS[type(model.config).__name__](model, tokenizer)
        except (AttributeError, KeyError, NotImplementedError) as error:
            raise ValueError(f"the converter of CTranslate2 does not take {source.path}: {error}") from None
        spec.register_vocabulary(_vocabulary(tokenizer, model.config.vocab_size))
        spec.config.layer_norm_epsilon = _epsilon(model.config)
        for name in ("bos_token", "eos_token", "unk_token"):  # the engine reads no null
            setattr(spec.config, name, getattr(tokenizer, name) or "")
        original, longest = lengths_for(snapshot.attention_scaling)
        factors = snapshot.factors.float().numpy()
        for layer in spec.decoder.layer:
            set_rope(layer.self_attention, factors, rope.base, _head_dim(model.config), original, longest)
        spec.validate()
        converted = sum(math.prod(variable.shape) for variable in spec.variables().values() if not variable.is_scalar())
        if converted - 2 * len(factors) * len(spec.decoder.layer) != weights:
            raise ValueError(f"the converter of CTranslate2 left out weights of {source.path}. Export to hf.")
        spec.optimize(None if quantize in (None, "keep") else quantize)
        for layer in spec.decoder.layer:  # `optimize` has rounded them with the weights
            for name in FACTORS:
                setattr(layer.self_attention, name, NumpyVariable(factors))
        copy_beside(source, snapshot, folder)
        spec.save(str(folder))

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        return f"""`pip install ctranslate2 transformers`, then

```python
import ctranslate2, transformers

tokenizer = transformers.AutoTokenizer.from_pretrained("{folder}")
generator = ctranslate2.Generator("{folder}", device="cpu")  # or "cuda"
tokens = tokenizer.convert_ids_to_tokens(tokenizer("Once upon a time").input_ids)
[result] = generator.generate_batch([tokens], max_length=64, include_prompt_in_result=False)
print(tokenizer.decode(result.sequences_ids[0]))
```

Prompt and answer may have {snapshot.max_length} tokens together; the engine does not check that. Compute types of 16
bits, which only GPUs have, may round its frequencies: compare `compute_type="float32"` there.
"""

    def engine(self) -> str:
        try:
            import ctranslate2
        except ImportError:
            raise EngineMissing("ctranslate2 is not installed. Run: pip install 'longwave[ctranslate2]'") from None
        return f"ctranslate2 {ctranslate2.__version__}"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """Decode on the CPU, with the engine's cache."""
        self.engine()
        import ctranslate2

        vocabulary = read_json(folder / "vocabulary.json")
        generator = ctranslate2.Generator(str(folder), device="cpu")
        answers = []
        for prompt in prompts:
            [result] = generator.generate_batch(
                [[vocabulary[token] for token in prompt]], max_length=new_tokens, end_token=[], sampling_topk=1,
                include_prompt_in_result=False, return_logits_vocab=True,
            )  # fmt: skip
            logits = np.stack([np.array(step).reshape(-1)[: len(vocabulary)] for step in result.logits[0]]).astype(
                np.float64
            )
            log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            answers.append(Answer(list(result.sequences_ids[0]), log_probs.astype(np.float32)))
        return answers


def lengths_for(scaling: float) -> tuple[int, int]:
    """The two position counts from which the engine computes this attention factor in float32: √(1 + ln m / ln n).

    Raises:
        ValueError: if there are none.
    """
    if scaling == 1:
        return 0, 0  # absent
    if scaling > 1:
        power, small = scaling**2 - 1, np.arange(2, 1 << 16)
        with np.errstate(over="ignore"):  # of m = n^power the larger is rounded, as the finer choice
            large = np.rint(small.astype(np.float64) ** max(power, 1 / power))
            fits = (large > 1) & (small * large < 2**31)
        pairs = np.stack([small, large] if power > 1 else [large, small], -1)[fits].astype(np.int64)
        original, ratio = pairs.T
        logs = np.log(ratio.astype(np.float32)).astype(np.float64), np.log(original.astype(np.float64))
        found = np.flatnonzero(np.sqrt(1 + logs[0] / logs[1]).astype(np.float32) == np.float32(scaling))
        if len(found):
            first = found[0]
            return int(original[first]), int(original[first] * ratio[first])
    raise ValueError(
        f"CTranslate2 cannot scale attention by {scaling:.7g}: it has 1 and what it computes from lengths, from 1.017 "
        "on. Export with --log-n drop, at another factor, or to hf."
    )


def set_rope(attention: Any, factors: np.ndarray, base: float, head_dim: int, original: int, longest: int) -> None:
    """Make one self-attention rotate by θ_i = 1/(λ_i·b^(2i/d))."""
    attributes: dict[str, Any] = {
        "rotary_dim": np.int32(2 * len(factors)),
        "rotary_base": np.float32(base),
        "rotary_scaling_type": np.int8(1),  # RotaryScalingType.Su
        "head_dim": np.int32(head_dim),
        "original_max_position_embeddings": np.int32(original),
        "max_position_embeddings": np.int32(longest),
    }
    # Not every loader builds its attention with these: `setattr` would refuse them, the engine reads them anyway.
    vars(attention).update(attributes | dict.fromkeys(FACTORS, factors))


def _as_the_loader_expects(model: Any, base: float, snapshot: Snapshot) -> None:
    """Under the names that the library's loaders read, of transformers 4 and of remote code."""
    config = model.config
    config.rope_parameters = {"rope_type": "longrope", "type": "longrope", "rope_theta": base}
    if config.model_type == "gpt_neox":
        config.rotary_pct = snapshot.rotary_dim / _head_dim(config)
        model.embed_out = model.lm_head
    if config.model_type == "phi3":
        rotary = model.model.rotary_emb
        rotary.long_factor = rotary.short_factor = snapshot.factors.tolist()
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = rotary


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _epsilon(config: Any) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    return next(getattr(config, name) for name in names if hasattr(config, name))


def _vocabulary(tokenizer: Any, size: int) -> list[str]:
    """A string for each id: a gap in the tokenizer's ids would move all that follow it."""
    tokens = [f"<extra_id_{index}>" for index in range(size)]
    for token, index in tokenizer.get_vocab().items():
        if index < size:
            tokens[index] = token
    return tokens
