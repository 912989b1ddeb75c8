"""Prefill and decode under attention methods against the stock model: interleaved rounds in one process, ratios.

    python benchmarks/attention.py [--prefills 2048,8192] [--contexts 8192,32768,131072] [--ways stock,two-band]
                                   [--layers 6] [--size full|small] [--json benchmarks/results/attention-cpu.json]

A model of 108 M parameters with grouped queries (14 heads on 2 key/value heads), L = 1,024, random weights; --layers
takes fewer of its 6 layers, for prompts that take minutes. `stock` is transformers as it is; `all keys` is the same
attention with a kernel that reads each key once, and a cache that is not copied at each step.

Decode starts from a cache of random keys. A round is 20 steps of each way, in alternating order. `attention` is what a
step spends in its attention layers without their projections: rotation, cache, choice and softmax. Seconds are CPU
seconds of the process, which other work on the machine does not lengthen as it does those of the clock.

Every measure is written as soon as it is there; rounds that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attention_ways import (
    STEPS,
    Clock,
    Rewinding,
    Way,
    bytes_held,
    bytes_read,
    filled,
    peak_memory,
    reset_peak,
    token_select,
)  # fmt: skip
from generate import SIZES
from transformers import LlamaConfig, LlamaForCausalLM

from longwave.files import write_json
from longwave.provenance import versions

L = 1024
SPARE = 4096  # tokens beyond the cache that t has to suit: a bounded cache goes on from round to round


def ways() -> dict[str, Way]:
    methods = (
        "two-band", "leaky-rerope", "self-extend", "dca", "rerope", "streaming-llm", "lm-infinite", "infllm", "quest",
    )  # fmt: skip
    found = [Way("stock"), Way("all keys"), *(Way(method, method) for method in methods)]
    found.append(Way("token-select", "token-select", token_select(L)))
    found.append(Way("token-select, no hits", "token-select", {"threshold": 2.0}))
    return {way.name: way for way in found}


class Results:
    """The file of results: rows with the times of each way, round by round."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path = path
        self.record: dict[str, Any] = {"benchmark": "attention", "rows": []}
        if path is not None and path.exists():
            self.record = json.loads(path.read_text("utf-8"))
        self.record |= about

    def row(self, **key: Any) -> dict[str, Any]:
        for row in self.record["rows"]:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        self.record["rows"].append({**key, "ways": {}})
        return self.record["rows"][-1]

    def add(self, row: dict[str, Any], way: str, times: dict[str, float], **facts: Any) -> None:
        own = row["ways"].setdefault(way, {})
        for name, value in times.items():
            own.setdefault("times", {}).setdefault(name, []).append(round(value, 6))
        own |= facts
        for name, found in own["times"].items():
            own[name] = round(statistics.median(found), 6)
        for base in ("stock", "all keys"):
            summarise(row["ways"], base)
        if self.path is not None:
            write_json(self.path, self.record)


def summarise(found: dict[str, Any], base: str) -> None:
    """Medians and quartiles of the ratios to a way within each round."""
    if base not in found:
        return
    for own in found.values():
        for name, times in own["times"].items():
            ratios = sorted(a / b for a, b in zip(times, found[base]["times"][name], strict=False))
            if ratios:
                low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
                middle = statistics.median(ratios)
                own[f"{name} / {base}"] = [round(value, 4) for value in (middle, low, high)]


def rounds(results: Results, row: dict[str, Any], chosen: list[Way], count: int, measure: Callable[[Way], Any]) -> None:
    """Rounds that are missing, each way in turn; the order turns from round to round."""
    for number in range(count):
        for way in chosen if number % 2 == 0 else reversed(chosen):
            done = len(next(iter(row["ways"].get(way.name, {}).get("times", {"": []}).values())))
            if done <= number:
                times, facts = measure(way)
                results.add(row, way.name, times, **facts)
                print(row["what"], row["tokens"], way.name, times, facts, flush=True)


@torch.no_grad()
def prefill(model: LlamaForCausalLM, way: Way, tokens: int) -> tuple[dict[str, float], dict[str, Any]]:
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    with way.on(model, tokens), Clock(model) as clock:
        model(ids[:, : L + 64], use_cache=True, logits_to_keep=1)  # warm-up
        gc.collect()
        before = reset_peak()
        clock.start()
        model(ids, use_cache=True, logits_to_keep=1)
        times = clock.stop()
    return times, {"peak_bytes": max(0, peak_memory() - before)}


@torch.no_grad()
def steps(model: LlamaForCausalLM, way: Way, state: Rewinding) -> tuple[dict[str, float], dict[str, Any]]:
    """A step of decode, the mean over `STEPS`; and the share of steps and layers that an earlier choice served."""
    ids, before, hits = torch.zeros(1, 1, dtype=torch.long), state.anchors(), 0
    with way.on(model, state.tokens + SPARE), Clock(model) as clock:
        clock.start()
        for _ in range(STEPS):
            model(ids, past_key_values=state.cache)
            after = state.anchors()
            hits += sum(a is b and a is not None for a, b in zip(before, after, strict=True))
            before = after
        times = {name: seconds / STEPS for name, seconds in clock.stop().items()}
    state.back()
    share = hits / (STEPS * len(before))
    return times, {"hits": round(share, 3)} if "token-select" in way.name else {}


def decode(model: LlamaForCausalLM, results: Results, row: dict[str, Any], chosen: list[Way], count: int) -> None:
    states: dict[str, Rewinding] = {}
    for way in chosen:
        cache = filled(model, way, row["tokens"], SPARE)
        with way.on(model, row["tokens"] + SPARE), torch.no_grad():  # warm-up: room to grow, summaries of pages
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
        states[way.name] = Rewinding(cache, row["tokens"])

    def measure(way: Way) -> tuple[dict[str, float], dict[str, Any]]:
        times, facts = steps(model, way, states[way.name])
        read = bytes_read(model, way, row["tokens"], facts.get("hits"))
        return times, {**facts, "bytes_read": read, "bytes_held": bytes_held(states[way.name].cache)}

    rounds(results, row, chosen, count, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ways()
    parser.add_argument("--ways", default=";".join(every), help="separated by semicolons")
    parser.add_argument("--prefills", default="2048,8192", help="tokens of a prompt; empty for none")
    parser.add_argument("--contexts", default="8192,32768,131072", help="tokens in the cache; empty for none")
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 108 M parameters")
    parser.add_argument("--layers", type=int, help="fewer layers than the size has")
    parser.add_argument("--rounds", type=int, default=7, help="of decode")
    parser.add_argument("--prompts", type=int, default=3, help="rounds of prefill")
    parser.add_argument("--json", type=Path, help="where the numbers are kept")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = {**SIZES[args.size], **({"num_hidden_layers": args.layers} if args.layers else {})}
    model = LlamaForCausalLM(LlamaConfig(**shape, head_dim=64, max_position_embeddings=L)).eval()
    results = Results(args.json, {"threads": torch.get_num_threads(), "L": L, "versions": versions()})
    chosen = [every[name] for name in args.ways.split(";")]
    key = {"parameters": sum(p.numel() for p in model.parameters()), "layers": shape["num_hidden_layers"]}
    for tokens in map(int, filter(None, args.prefills.split(","))):
        once = [way for way in chosen if way.name not in ("all keys", "token-select, no hits")]  # the same as another
        row = results.row(what="prefill", tokens=tokens, **key)
        rounds(results, row, once, args.prompts, lambda way, n=tokens: prefill(model, way, n))
    for tokens in map(int, filter(None, args.contexts.split(","))):
        decode(model, results, results.row(what="decode", tokens=tokens, **key), chosen, args.rounds)


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"{time.time() - started:.0f} s")
