"""The ways to run attention that benchmarks/attention.py compares, their filled caches, and what a step reads."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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
from longwave.attention.quest import Pages, Quest
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
    """Options under which a choice serves `HITS` steps of decode, whatever the queries: its window then is full."""
    own = TokenSelect(original_length=length, max_factor=1.0)
    return {"threshold": -1.0, "top_k": length - own.a - own.w - (HITS - 1)}


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
    """A cache of so many tokens; `back` takes off what was decoded since, and copies nothing.

    A bounded cache goes on: its size stays.
    """

    def __init__(self, cache: DynamicCache, tokens: int) -> None:
        self.cache, self.tokens = cache, tokens
        self.rows = [self._first(layer) for layer in cache.layers]
        self.back()

    def back(self) -> None:
        for layer, rows in zip(self.cache.layers, self.rows, strict=True):
            if hasattr(layer, "total"):
                continue
            layer.keys, layer.values = layer.keys[:, :, : self.tokens], layer.values[:, :, : self.tokens]
            if rows is not None:
                layer.rows = rows

    def anchors(self) -> list[Any]:
        return remembered(self.cache)

    def _first(self, layer: Any) -> Any:
        """The memory at `tokens`: that of a token later serves where it is not about single tokens."""
        rows = getattr(layer, "rows", None)
        if not rows:
            return None
        memory = rows[0].memory
        if isinstance(memory, Blocks):
            memory = Blocks(memory.represented, memory.received[:, :-1])
        elif not isinstance(memory, Pages):
            memory = None
        return (Remembered(self.tokens, memory),)


def remembered(cache: DynamicCache) -> list[Any]:
    """What each layer remembers of the first row."""
    rows = [getattr(layer, "rows", ()) for layer in cache.layers]
    return [row[0].memory if row and row[0] is not None else None for row in rows]


class Clock:
    """CPU seconds of a forward, and of its attention layers without their projections."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.handles: list[Any] = []
        self.start()

    def __enter__(self) -> Clock:
        for layer in self.model.model.layers:
            own = layer.self_attn
            for module, sign in ((own, 1), *((getattr(own, f"{name}_proj"), -1) for name in "qkvo")):
                self.handles.append(
                    module.register_forward_pre_hook(lambda *_, sign=sign: self.note(-sign), prepend=True)
                )
                self.handles.append(module.register_forward_hook(lambda *_, sign=sign: self.note(sign)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def note(self, sign: int) -> None:
        self.attention += sign * time.process_time()

    def start(self) -> None:
        self.attention, self.began = 0.0, time.process_time()

    def stop(self) -> dict[str, float]:
        return {"seconds": time.process_time() - self.began, "attention": self.attention}


def reset_peak() -> int:
    """Let the peak of memory begin here. Bytes that the process holds now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak_memory() -> int:
    """The most bytes that the process held since."""
    return _memory("VmHWM")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def bytes_held(cache: DynamicCache) -> int:
    """Of keys, values and what a method remembers, spare room included."""
    storages = {}
    for layer in cache.layers:
        rows = [row and row.memory for row in getattr(layer, "rows", ())]
        for tensor in tensors_of([layer.keys, layer.values, rows]):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def bytes_read(model: LlamaForCausalLM, way: Way, tokens: int, hits: float | None) -> int:
    """Keys and values that a step of decode reads in all layers, by the method's rule; copies count twice more."""
    config = model.config
    key = config.num_key_value_heads * config.head_dim * 4  # a key, or a value, of all key heads
    head = config.num_attention_heads * config.head_dim * 4  # the same for each query head
    if way.method is None:
        return config.num_hidden_layers * 2 * key * tokens
    method = way.attention(model, tokens + 1)
    if isinstance(method, TokenSelect):
        attended, miss = 2 * key * method.budget, 1 - (hits or 0.0)
        copied = 4 * key * method.budget  # at a miss the list is gathered, at a hit the latest keys are put behind it
        return config.num_hidden_layers * round(attended + copied + miss * key * (tokens - method.a - method.w))
    if isinstance(method, InfLLM):
        blocks, seen = (tokens - method.w - method.sinks) // method.size, method.sinks + method.top_blocks * method.size
        return config.num_hidden_layers * (head * blocks + key * (4 * method.w + 6 * (seen + method.size // 2)))
    if isinstance(method, Quest):
        return config.num_hidden_layers * (2 * key * (tokens // method.size) + 6 * head * method.pages * method.size)
    at, total = torch.tensor([float(tokens)]), 0
    bands = method.bands((tokens + 1) / method.original_length)
    stored = None if method.stored is None else bands[method.stored]
    for band in bands:
        keys = int(band.last(at)) - int(band.first(at).clamp(min=0))
        turned = stored is None or band.key is not stored.key or band.own != stored.own
        total += max(0, keys) * key * (4 if turned else 2)
    return config.num_hidden_layers * total


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from tensors_of(getattr(value, item.name))
