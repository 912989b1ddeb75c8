"""A step of vLLM with the plugin against stock vLLM, interleaved in one process.

    python benchmarks/serving_step.py EXPORT PLAIN [--rounds 14] [--prompt N] [--new 64] [--json FILE]

EXPORT is a folder of `longwave export --profiles`, PLAIN the model that it was made from. Both engines answer the same
eight prompts within L at once: stock vLLM, the plugin at t = 1, and the plugin at t = 4 by `rope_factor`. A round asks
all three, in another order each time; a step makes one token for each of the eight. The ratio of a round is the time of
a step over that of stock vLLM in the same round. `--new 1` measures prefill. With `--prompt` all prompts have N tokens;
beyond L, PLAIN must be an export with profiles, too, and each engine chooses t.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--prompt", type=int, help="tokens of every prompt; default 40, 55, ... 145")
    parser.add_argument("--new", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams, __version__

    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": False, "seed": 0}
    stock, ours = LLM(str(args.plain), **settings), LLM(str(args.export), **settings)
    draw = random.Random(0)
    sizes = [args.prompt or 40 + 15 * n for n in range(PROMPTS)]
    prompts = [{"prompt_token_ids": [draw.randrange(10, 500) for _ in range(size)]} for size in sizes]
    within = max(sizes) + args.new <= ours.llm_engine.model_config.hf_config.max_position_embeddings

    def ask(llm: Any, t: float | None) -> float:
        extra = None if t is None else {"rope_factor": t}
        sampling = SamplingParams(temperature=0, max_tokens=args.new, ignore_eos=True, extra_args=extra)
        start = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return (time.perf_counter() - start) / args.new

    ways = {"stock": (stock, None), "t = 1" if within else "t by length": (ours, None)}
    if within:
        ways["t = 4"] = ours, 4.0
    for way in ways.values():
        ask(*way)
    rounds: list[dict[str, float]] = []
    for _ in range(args.rounds):
        order = draw.sample(list(ways), len(ways))
        rounds.append({name: ask(*ways[name]) for name in order})
    found: dict[str, Any] = {"vllm": __version__, "rounds": args.rounds, "milliseconds": {}, "ratio": {}}
    for name in ways:
        found["milliseconds"][name] = round(1000 * statistics.median(each[name] for each in rounds), 3)
        ratios = [each[name] / each["stock"] for each in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found["ratio"][name] = [round(part, 3) for part in (middle, low, high)]
    print(json.dumps(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
