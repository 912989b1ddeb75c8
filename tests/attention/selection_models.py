"""Tiny random models of six families, with weights so large that attention is peaked and a wrong key shows.

They are float64: in float32 two keys may be so near to one another that rounding decides which of them is chosen.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

L = 32
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": L, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
ONE_KEY_HEAD = {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}
MIXED = {"head_dim": 16, "sliding_window": 16, "num_hidden_layers": 6}  # five layers see a window, the last one all
BUILD: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{name: size for name, size in SIZES.items() if "key_value" not in name}, rotary_pct=0.25)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **ONE_KEY_HEAD})),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**{**SIZES, **MIXED})),
}
FACTOR = {"token-select": 2.5, "infllm": 2.5, "quest": 2.5, "ms-poe": 1.2}  # the largest t of each method here


@cache
def peaked(family: str) -> PreTrainedModel:
    """One model of a family for all tests: they must restore it."""
    torch.manual_seed(0)
    model: PreTrainedModel = BUILD[family]().double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def text_ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(1, 97, (rows, tokens), generator=torch.Generator().manual_seed(1))


def step_by_step(model: Any, ids: Tensor, cuts: list[int], **kwargs: Any) -> Tensor:
    """Logits of forwards that go on with one cache, cut at these places."""
    cache, found = None, []
    for first, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        output = model(ids[:, first:stop], past_key_values=cache, use_cache=True, **kwargs)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, 1)


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding. A wrong key moves logits by 0.1 and more."""
    return bool((a - b).abs().max() < 1e-8)
