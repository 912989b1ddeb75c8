"""A training step with CLEX against the same step without: interleaved pairs in one process, ratios.

    python benchmarks/train_step.py [--pairs 20] [--size full|small] [--tokens 1024] [--json train_step.json]

A step is the draw of t and positions, forward, backward, gradient clipping and AdamW, as
`longwave train` takes it; without CLEX it is the plain model's at contiguous positions. Both work on
one model and one optimizer (AdamW passes over parameters without a gradient), so that weights, memory
and caches are the same, and the order within a pair alternates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import longwave
from longwave.extensions.steering import count_keys
from longwave.files import write_json
from longwave.provenance import versions
from longwave.training.draw import LengthSampler

SIZES = {
    "full": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
             "vocab_size": 32000},
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3,
              "vocab_size": 512},
}  # fmt: skip
FACTOR = 16.0


def step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: Tensor, positions: Tensor, field: list[Tensor]
) -> float:
    mask = torch.ones_like(ids)
    loss = model(ids, labels=ids, attention_mask=mask, position_ids=positions, use_cache=False).loss
    loss.backward()
    learned = {id(parameter) for parameter in field}
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if id(p) not in learned], 1.0)
    if field:
        torch.nn.utils.clip_grad_norm_(field, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())  # waits for the device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 110 M parameters")
    parser.add_argument("--tokens", type=int, default=1024, help="of the one row of a step, and L")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[args.size], max_position_embeddings=args.tokens, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(args.device).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.randint(0, config.vocab_size, (1, args.tokens), device=args.device)
    longwave.extend(model, "clex", max_factor=FACTOR)
    trajectory = longwave.rotaries(model)[0].trajectory
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    longwave.restore(model)
    sampler = LengthSampler(args.tokens, FACTOR, chunks=4)

    def plain(_: int) -> float:
        started = time.perf_counter()
        step(model, optimizer, ids, torch.arange(args.tokens, device=args.device)[None], [])
        return time.perf_counter() - started

    def clex(pair: int) -> float:
        longwave.extend(model, max_factor=FACTOR, trajectory=trajectory)
        count_keys(model, True)
        started = time.perf_counter()
        t, positions = sampler(1, args.tokens, step=pair)
        for rotary in longwave.rotaries(model):
            rotary.factor = t
        step(model, optimizer, ids, positions.to(args.device), list(trajectory.parameters()))
        spent = time.perf_counter() - started
        longwave.restore(model)
        return spent

    for pair in range(2):  # warm-up: allocations and the optimizer's state
        plain(pair), clex(pair)
    times: dict[str, list[float]] = {"plain": [], "clex": []}
    for pair in range(args.pairs):
        for run in (plain, clex) if pair % 2 == 0 else (clex, plain):
            times[run.__name__].append(run(pair))
        print(f"pair {pair + 1}/{args.pairs}: {times['clex'][-1] / times['plain'][-1]:.4f}", flush=True)

    ratios = sorted(with_clex / without for with_clex, without in zip(times["clex"], times["plain"], strict=True))
    result = {
        "median_ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
    }
    threads = torch.get_num_threads()
    print(f"\n{parameters / 1e6:.1f} M parameters, {args.tokens} tokens, {args.pairs} pairs, {threads} threads")
    print(f"{'step':<8}{'median seconds':>16}")
    for name, value in result["median_seconds"].items():
        print(f"{name:<8}{value:>16.4f}")
    low, high = result["quartiles"]
    print(f"median ratio {result['median_ratio']:.4f} (quartiles {low:.4f} to {high:.4f})")
    if args.json:
        setting = {"parameters": parameters, "tokens": args.tokens, "pairs": args.pairs, "device": args.device}
        setting |= {"threads": threads}
        record = {"benchmark": "train_step", "versions": versions(), **setting, **result, "seconds": times}
        write_json(args.json, record)


if __name__ == "__main__":
    main()
