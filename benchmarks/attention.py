"""Prefill and decode under attention methods against the same stock model: interleaved rounds in one process, ratios.

    python benchmarks/attention.py [--methods two-band,dca,streaming-llm] [--prefills 2048,8192,32768]
                                   [--contexts 8192,32768,131072] [--size full|small] [--json attention.json]

A model of 108 M parameters with grouped queries (14 heads on 2 key/value heads), L = 1,024. Decode starts from a cache
of random keys; a round is some steps of each way, in alternating order. Bytes are those of keys and values that a step
has to read by the bands; near keys that are turned to their places count twice more (read, written).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from generate import SIZES, STEPS, compare, decode_seconds, prefill_seconds, random_cache
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import longwave
from longwave.attention import get_attention
from longwave.extensions.caches import FILLED_AT
from longwave.extensions.generation import prepare_cache
from longwave.files import write_json
from longwave.provenance import versions

L = 1024
ROOM = STEPS + 1  # tokens beyond the cache that t has to suit
METHODS = "two-band,leaky-rerope,self-extend,dca,rerope,streaming-llm,lm-infinite"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--prefills", default="2048,8192,32768", help="tokens of a prompt; empty for none")
    parser.add_argument("--contexts", default="8192,32768,131072", help="tokens in the cache; empty for none")
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 108 M parameters")
    parser.add_argument("--rounds", type=int, default=10, help="of decode")
    parser.add_argument("--prompts", type=int, default=3, help="rounds of prefill")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[args.size], head_dim=64, max_position_embeddings=L)).eval()
    methods = args.methods.split(",")
    rows: list[dict[str, Any]] = []
    for length in map(int, filter(None, args.prefills.split(","))):
        found = compare(ways(model, methods, length), lambda _, n=length: prefill_seconds(model, n), args.prompts)
        rows.append({"what": "prefill", "tokens": length, **found})
        show(rows[-1])
    for length in map(int, filter(None, args.contexts.split(","))):
        caches = {name: filled(model, name, length) for name in ["stock", *methods]}

        def step(name: str, caches: dict[str, DynamicCache] = caches, length: int = length) -> float:
            return decode_seconds(model, caches[name], length)

        found = compare(ways(model, methods, length + ROOM), step, args.rounds)
        read = {name: bytes_read(model, name, length) for name in caches}
        held = {name: bytes_held(cache) for name, cache in caches.items()}
        rows.append({"what": "decode", "tokens": length, **found, "bytes_read": read, "bytes_held": held})
        show(rows[-1])
    if args.json:
        about = {"parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(), "L": L}
        write_json(args.json, {"benchmark": "attention", **about, "versions": versions(), "rows": rows})


def ways(
    model: LlamaForCausalLM, methods: list[str], length: int, options: dict[str, dict[str, Any]] | None = None
) -> dict[str, Callable[[], Any]]:
    """How a model of `length` tokens runs, by name; a name may have a word behind its method, and options."""
    t = length / model.config.max_position_embeddings

    @contextmanager
    def under(name: str) -> Iterator[None]:
        with longwave.extended(model, name.split()[0], max_factor=t, **(options or {}).get(name, {})):
            longwave.set_policy(model, "fixed", t)
            yield

    return {"stock": nullcontext, **{name: lambda name=name: under(name) for name in methods}}


def filled(model: LlamaForCausalLM, method: str, length: int, room: int = ROOM) -> DynamicCache:
    """A cache of random keys, bounded where the method sees a bounded number of them."""
    cache = random_cache(model, length)
    if method == "stock":
        return cache
    t = (length + room) / model.config.max_position_embeddings
    with longwave.extended(model, method, max_factor=t):
        bounded = DynamicCache(config=model.config)
        prepare_cache(model, bounded)
        for number, layer in enumerate(cache.layers):
            bounded.update(layer.keys, layer.values, number)
    setattr(bounded, FILLED_AT, (t,))
    return bounded


def bytes_read(model: LlamaForCausalLM, method: str, length: int) -> int:
    """Keys and values that a step reads, in all layers."""
    config = model.config
    key = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    if method == "stock":
        return 2 * key * length
    t = (length + ROOM) / L
    attention = get_attention(method).create(original_length=L, max_factor=t)
    at, total = torch.tensor([float(length)]), 0
    bands = attention.bands(t)
    stored = None if attention.stored is None else bands[attention.stored]
    for band in bands:
        keys = int(band.last(at)) - int(band.first(at).clamp(min=0))
        turned = stored is None or band.key is not stored.key or band.own != stored.own
        total += max(0, keys) * key * (4 if turned else 2)
    return total


def bytes_held(cache: DynamicCache) -> int:
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers)


def show(row: dict[str, Any]) -> None:
    for name, ratio in row["ratios"].items():
        low, high = row["quartiles"][name]
        stock = row["seconds"]["stock"] * 1e3
        read = (
            f", {row['bytes_read'][name] / row['bytes_read']['stock']:.2f} of its bytes" if "bytes_read" in row else ""
        )
        print(f"{row['what']} at {row['tokens']:,}: {name} / stock {ratio:.3f} ({low:.3f} to {high:.3f}){read}, "
              f"stock {stock:.1f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
