"""The ways to run attention that benchmarks/attention.py compares, their filled caches, and what a step reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from generate import random_cache
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import longwave
from longwave.attention import get_attention
from longwave.attention.infllm import Blocks, InfLLM
from longwave.attention.kernels import decode, is_plain_decode
from longwave.attention.quest import Quest
from longwave.attention.token_select import TokenSelect
from longwave.extensions.caches import FILLED_AT
from longwave.extensions.generation import prepare_cache
from longwave.extensions.memory import Remembered, SelectingLayer

STEPS = 20  # of decode in a round
HITS = STEPS // 2  # steps that share a choice in `token-select`, the one that makes it included


@dataclass(frozen=True)
class Way:
    """An attention method with options; no method for the model as it is."""

    name: str
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def on(self, model: LlamaForCausalLM, tokens: int) -> AbstractContextManager[Any]:
        """The model runs this way, at the t of so many tokens."""
        if self.method is None:
            return packed(model) if self.name == "all keys" else nullcontext()
        return under(model, self.method, tokens, self.options)

    def attention(self, model: LlamaForCausalLM, tokens: int) -> Any:
        assert self.method is not None
        length = model.config.max_position_embeddings
        return get_attention(self.method).create(
            original_length=length, max_factor=max(1.0, tokens / length), **self.options
        )


@contextmanager
def under(model: LlamaForCausalLM, method: str, tokens: int, options: dict[str, Any]) -> Iterator[None]:
    factor = max(1.0, tokens / model.config.max_position_embeddings)
    spec = f"yarn+{method}" if method == "quest" else method
    with longwave.extended(model, spec, max_factor=factor, **options):
        longwave.set_policy(model, "fixed", factor)
        yield


@contextmanager
def packed(model: LlamaForCausalLM) -> Iterator[None]:
    """Attention over all keys that reads each key once in decoding, as longwave's kernels do."""
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = decode if is_plain_decode(q, k, *args, **kwargs) else partial(stock, module)
        return run(q, k, v, **kwargs) if run is decode else run(q, k, v, *args, **kwargs)

    AttentionInterface.register("packed", attention)
    AttentionMaskInterface.register("packed", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = model.config._attn_implementation
    model.set_attn_implementation("packed")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def token_select(length: int) -> dict[str, Any]:
    """Options under which a choice of decoding serves `HITS` steps, whatever the queries: its window then is full."""
    own = TokenSelect(original_length=length, max_factor=1.0)
    return {"threshold": -1.0, "top_k": min(own.budget, length) - own.a - own.w - (HITS - 1 if own.budget > length - HITS else 0)}


@torch.no_grad()
def filled(model: LlamaForCausalLM, way: Way, tokens: int, room: int) -> DynamicCache:
    """A cache of random keys: bounded, or with a memory, where the method has such a one."""
    stock = random_cache(model, tokens)
    if way.name == "stock":
        return stock
    cache = DynamicCache(config=model.config)
    if way.method is None:
        like = TokenSelect(original_length=model.config.max_position_embeddings, max_factor=1.0)
        cache.layers = [SelectingLayer(like) for _ in stock.layers]  # which does not copy its keys at each step
    else:
        with way.on(model, tokens + room):
            prepare_cache(model, cache)
        method = way.attention(model, tokens + room)
        if method.remembers:
            cache.layers = [SelectingLayer(method) for _ in stock.layers]
        setattr(cache, FILLED_AT, ((tokens + room) / method.original_length,))
    for number, layer in enumerate(stock.layers):
        cache.update(layer.keys, layer.values, number)
        if way.method is not None and method.remembers:
            cache.layers[number].keep(0, Remembered(tokens, memory_of(method, model, tokens)))
    return cache


def memory_of(method: Any, model: LlamaForCausalLM, tokens: int) -> Any:
    """What a prompt of random keys might leave; None where decoding begins without it."""
    if not isinstance(method, InfLLM):
        return None
    config = model.config
    blocks = max(0, (tokens - method.w - method.sinks) // method.size)
    later = tokens - method.sinks - blocks * method.size
    represented = torch.randn(config.num_attention_heads, blocks, config.head_dim)
    return Blocks(represented, torch.rand(config.num_attention_heads, later))


class Rewinding:
    """A cache as it was when this was made; `back` takes off what was decoded since, and copies nothing.

    A bounded cache goes on: its size stays.
    """

    def __init__(self, cache: DynamicCache) -> None:
        self.cache, self.tokens = cache, cache.get_seq_length()
        self.rows = [getattr(layer, "rows", None) for layer in cache.layers]

    def back(self) -> None:
        for layer, rows in zip(self.cache.layers, self.rows, strict=True):
            if hasattr(layer, "total"):
                continue
            layer.keys, layer.values = layer.keys[:, :, : self.tokens], layer.values[:, :, : self.tokens]
            if rows is not None:
                layer.rows = rows


def anchors(cache: DynamicCache) -> list[Any]:
    """What each layer remembers of its last choice."""
    rows = [getattr(layer, "rows", ()) for layer in cache.layers]
    return [row[0].memory if row and row[0] is not None else None for row in rows]


def bytes_held(cache: DynamicCache) -> int:
    """Of keys, values and what a method remembers, spare room included."""
    storages = {}
    for layer in cache.layers:
        for tensor in tensors_of([layer.keys, layer.values, [row and row.memory for row in getattr(layer, "rows", ())]]):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from tensors_of(getattr(value, item.name))
