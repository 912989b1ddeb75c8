"""What the parts of the recipe cost: interleaved pairs in one process, ratios.

    python benchmarks/recipe_cost.py [--pairs 15] [--size full|small] [--json benchmarks/results/recipe_cost.json]

Each pair is one model with a part and one model without, of the same weights:

    off     within L: two-band with scalars of heads and LoRA, against the plain model
    on      at t = 4: two-band with LoRA, against two-band; and NTK with LoRA, against NTK
    mass    at t = 4: two-band with mass 1, against mass 0

Prefill is one forward over the prompt; decode is 20 tokens after it. Seconds are CPU seconds of the process, which
other work on the machine does not lengthen as it does those of the clock. The order within a pair alternates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate import SIZES
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import longwave
from longwave.extensions.adapter import LoRA
from longwave.extensions.handle import find_extension
from longwave.files import write_json
from longwave.provenance import versions

L, STEPS = 512, 20


def build(size: str, method: str | None, *, lora: bool = False, **options: Any) -> LlamaForCausalLM:
    """A model of random weights, the same ones every time; with a LoRA that has left its start."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[size] | {"max_position_embeddings": L})).eval()
    if method is not None:
        adapter = LoRA(16, 4.0) if lora else None
        longwave.extend(model, method, max_factor=16, adapter=adapter, **options)
        found = longwave.extension(model).adapter
        for parameter in () if found is None else found.parameters():
            torch.nn.init.normal_(parameter, std=1e-3)
    return model


@torch.no_grad()
def prefill(model: LlamaForCausalLM, tokens: int) -> float:
    ids = torch.randint(0, 500, (1, tokens), generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    model(ids, use_cache=False, logits_to_keep=1)
    return time.process_time() - started


@torch.no_grad()
def decode(model: LlamaForCausalLM, tokens: int) -> float:
    """Seconds of a step, the mean over `STEPS` after a prompt."""
    ids = torch.randint(0, 500, (1, tokens - STEPS), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    if find_extension(model) is not None:
        longwave.set_policy(model, "fixed", max(1.0, tokens / L))
    model(ids, past_key_values=cache, logits_to_keep=1)
    started = time.process_time()
    for _ in range(STEPS):
        model(ids[:, :1], past_key_values=cache)
    return (time.process_time() - started) / STEPS


def ratios(measure: Callable[[Any, int], float], own: Any, base: Any, tokens: int, pairs: int) -> dict[str, Any]:
    measure(own, tokens), measure(base, tokens)  # warm-up
    found = []
    for number in range(pairs):
        if number % 2:
            seconds = measure(own, tokens)
            found.append(seconds / measure(base, tokens))
        else:
            seconds = measure(base, tokens)
            found.append(measure(own, tokens) / seconds)
    found.sort()
    return {
        "median": round(statistics.median(found), 4),
        "quartiles": [round(found[pairs // 4], 4), round(found[3 * pairs // 4], 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    two = {"head_scalars": True}
    cells = {
        "off: within L": (("two-band", {"lora": True, **two}), (None, {}), L),
        "on: two-band, t = 4": (("two-band", {"lora": True, **two}), ("two-band", two), 4 * L),
        "on: NTK, t = 4": (("ntk", {"lora": True}), ("ntk", {}), 4 * L),
        "mass, t = 4": (("two-band", {"mass": 1.0}), ("two-band", {"mass": 0.0}), 4 * L),
    }
    rows = []
    for name, ((own, mine), (base, theirs), tokens) in cells.items():
        models = build(args.size, own, **mine), build(args.size, base, **theirs)
        for what, measure in (("prefill", prefill), ("decode", decode)):
            rows.append({"what": name, "kind": what, "tokens": tokens, **ratios(measure, *models, tokens, args.pairs)})
            print(rows[-1], flush=True)
    if args.json is not None:
        about = {"benchmark": "recipe_cost", "size": args.size, "pairs": args.pairs, "L": L, "threads": 1}
        write_json(args.json, {**about, "rows": rows, "versions": versions()})


if __name__ == "__main__":
    main()
