"""CTranslate2's own converter, with the model changed to what its loaders expect."""

from __future__ import annotations

import math
from typing import Any

from longwave.checkpoints.load import load
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.exporters.base import Unsupported
from longwave.exporters.changes import Changes
from longwave.exporters.ctranslate2.rope import FACTORS, Su
from longwave.exporters.source import Source
from longwave.extensions.attach import restore


def converted(source: Source, rope: Su, quantize: str | None, changes: Changes) -> Any:
    """The model as a `ctranslate2.specs.LanguageModelSpec`, with the factors in every layer.

    Raises:
        Unsupported: if the library's loader does not take the model, or leaves out weights.
    """
    model = restore(load(source.path, dtype="auto")).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if (change := changes.of(name)) is not None:
            # Rounded once, to the type of the export: not first to that of the file.
            parameter.data = change(parameter) if quantize else change(parameter).to(parameter.dtype)
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    _as_the_loader_expects(model, rope)
    spec = _loaded(model, load_tokenizer(source.tokenizer), source.path)
    for layer in spec.decoder.layer:
        rope.put_on(layer.self_attention)
    spec.validate()
    found = sum(math.prod(variable.shape) for variable in spec.variables().values() if not variable.is_scalar())
    if found - 2 * len(rope.factors) * len(spec.decoder.layer) != weights:
        raise Unsupported(f"the converter of CTranslate2 left out weights of {source.path}.")
    spec.optimize(quantize)
    _keep_factors(spec, rope)
    return spec


def _loaded(model: Any, tokenizer: Any, path: str) -> Any:
    from ctranslate2.converters.transformers import _MODEL_LOADERS

    try:
        spec = _MODEL_LOADERS[type(model.config).__name__](model, tokenizer)
    except (AttributeError, KeyError, NotImplementedError) as error:
        raise Unsupported(f"the converter of CTranslate2 does not take {path}: {error}.") from None
    spec.register_vocabulary(_vocabulary(tokenizer, model.config.vocab_size))
    spec.config.layer_norm_epsilon = _epsilon(model.config)
    for name in ("bos_token", "eos_token", "unk_token"):  # the engine reads no null
        setattr(spec.config, name, getattr(tokenizer, name) or "")
    return spec


def _keep_factors(spec: Any, rope: Su) -> None:
    """Put the factors back, which `optimize` has rounded with the weights."""
    from ctranslate2.specs.model_spec import NumpyVariable

    for layer in spec.decoder.layer:
        for name in FACTORS:
            setattr(layer.self_attention, name, NumpyVariable(rope.factors))


def _as_the_loader_expects(model: Any, rope: Su) -> None:
    """Give the model the names that the loaders read: those of transformers 4 and of remote code."""
    config = model.config
    config.rope_parameters = {"rope_type": "longrope", "type": "longrope", "rope_theta": rope.base}
    if config.model_type == "gpt_neox":
        config.rotary_pct = 2 * len(rope.factors) / rope.head_dim
        model.embed_out = model.lm_head
    if config.model_type == "phi3":
        rotary = model.model.rotary_emb
        rotary.long_factor = rotary.short_factor = rope.factors.tolist()
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = rotary


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
