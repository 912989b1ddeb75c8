"""The loss of training in blocks against the plain one: value, gradients, time and peak memory.

    python benchmarks/loss_in_blocks.py [--pairs 5] [--tokens 2048] [--json loss_in_blocks.json]

Forward and backward of a model with a vocabulary of 128,000 (hidden 256, 2 layers). Time (of the processor):
interleaved pairs in one process, whose order alternates. Memory: 8,192 tokens, each way in a process of its own; what
counts is the peak resident memory during the step minus the resident memory before it, weights and their gradients
included in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from longwave.files import write_json
from longwave.provenance import versions

TOKENS, VOCABULARY = 8_192, 128_000
WAYS = ("off", "on")


def resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def model_and_ids(tokens: int):
    """A model in float32 and a row of random tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter).fill_(
            0
        )  # as in a step that accumulates; written, so that it is there
    return model, torch.randint(0, VOCABULARY, (1, tokens))


def step(model, ids, way: str) -> tuple[float, float]:
    """Loss and seconds of a forward and backward: of the processor, which others on the machine do not change."""
    from longwave.training.loss import loss_in_blocks

    started = time.process_time()
    with loss_in_blocks(model, way):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), time.process_time() - started


def memory(way: str) -> dict[str, float]:
    """A step over 8,192 tokens in this process."""
    model, ids = model_and_ids(TOKENS)
    before = resident("VmRSS")
    with suppress(OSError):  # where it is not allowed, the peak is at most overstated
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    loss, seconds = step(model, ids, way)
    return {"peak_bytes": resident("VmHWM") - before, "loss": loss, "seconds": round(seconds, 1)}


def in_subprocess(way: str) -> dict[str, float]:
    """`memory` in a fresh process."""
    # The allocator's own settings: others could keep what is freed.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, __file__, "--way", way], capture_output=True, text=True, env=plain)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(tokens: int, pairs: int) -> dict[str, float]:
    """Interleaved pairs: the ratio of seconds, and how far loss and gradients are apart."""
    model, ids = model_and_ids(tokens)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    losses, gradients = {}, {}
    for way in WAYS:  # warms up, and compares
        model.zero_grad(set_to_none=False)
        losses[way], _ = step(model, ids, way)
        gradients[way] = [parameter.grad.clone() for parameter in model.parameters()]
    apart = max(
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(gradients["off"], gradients["on"], strict=True)
    )
    del gradients
    for pair in range(pairs):
        for way in WAYS if pair % 2 == 0 else WAYS[::-1]:
            found[way].append(step(model, ids, way)[1])
    ratios = [on / off for on, off in zip(found["on"], found["off"], strict=True)]
    return {
        "tokens": tokens,
        "pairs": pairs,
        "loss_difference": abs(losses["on"] - losses["off"]) / losses["off"],
        "gradient_difference": apart,
        "median_ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "seconds_plain": statistics.median(found["off"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step whose time is measured")
    parser.add_argument("--without-plain-memory", action="store_true", help="where 14 GB are too much")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(memory(args.way)))
        return
    measured = {way: in_subprocess(way) for way in WAYS if not (way == "off" and args.without_plain_memory)}
    for way, row in measured.items():
        print(f"{way:4} {row['peak_bytes'] / 2**30:6.2f} GB  loss {row['loss']:.6f}  {row['seconds']:.1f} s")
    speed = compare(args.tokens, args.pairs)
    print(f"ratio {speed['median_ratio']:.3f} (median of {args.pairs} pairs)")
    print(f"loss differs by {speed['loss_difference']:.1e}, gradients by {speed['gradient_difference']:.1e}")
    if args.json:
        shape = {"tokens": TOKENS, "vocabulary": VOCABULARY}
        write_json(args.json, {"memory": {**shape, **measured}, "time": speed, "versions": versions()})


if __name__ == "__main__":
    main()
