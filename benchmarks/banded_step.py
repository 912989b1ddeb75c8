"""A step of decoding with bands in one attention layer: requests computed together against one by one.

    python benchmarks/banded_step.py [--rounds 15]

Processor seconds of one process, medians of interleaved rounds. The cache is that of vLLM's FlashAttention and Triton:
blocks of 16 tokens. 14 heads on 2 key heads, d = 64, two-band at t = 8, L = 1,024; no vLLM is needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch

from longwave.serving.banded import BandedProfile
from longwave.serving.bands import Bands
from longwave.serving.profiles import Profile, Profiles
from longwave.serving.vllm import banding
from longwave.serving.vllm.caches import halves

L, HEADS, KEY_HEADS, WIDTH, BLOCK = 1024, 14, 2, 64, 16
CASES = (8, 64, 210), (32, 64, 400), (32, 256, 2048), (8, 4000, 8000)  # requests, shortest, longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    own = tuple((1e4 ** (-torch.arange(WIDTH // 2, dtype=torch.float64) / (WIDTH // 2))).tolist())
    profiles = Profiles(
        L, (Profile(1.0, L, (), 1.0, own), Profile(8.0, 8 * L, (), 1.0, own)), bands=Bands("two-band", {}, 16.0)
    )
    known = {1: BandedProfile(profiles, 1)}
    for case in CASES:
        print(case, measure(known, *case, rounds), flush=True)


@torch.inference_mode()
def measure(known: dict[int, BandedProfile], count: int, least: int, most: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way."""
    lengths = torch.randint(least, most, (count,), generator=torch.Generator().manual_seed(0))
    blocks = -(-int(lengths.max()) // BLOCK)
    cache = torch.randn(count * blocks + 1, KEY_HEADS, BLOCK, 2 * WIDTH)
    metadata = SimpleNamespace(
        query_start_loc=torch.arange(count + 1), seq_lens=lengths,
        block_table=torch.arange(1, count * blocks + 1).view(count, blocks),
    )  # fmt: skip
    query, impl, limits = torch.randn(count, HEADS, WIDTH), SimpleNamespace(scale=WIDTH**-0.5), banding.GATHERED
    layers: dict[str, Any] = {}
    for way, limit in (("together", limits), ("one by one", 0)):
        layers[way] = banding.LayerBands(banding.Batch(known), 0.5, halves)
        layers[way].batch.begin([1] * count)
        banding.GATHERED = limit  # 0: no two share a call
        layers[way].batch.parts(metadata)  # as the first layer does for all
    banding.GATHERED = limits
    times: dict[str, list[float]] = {way: [] for way in layers}
    outputs = {way: torch.empty_like(query) for way in layers}
    for _ in range(rounds):
        for way, layer in layers.items():
            started = time.process_time()
            layer.run(impl, query, cache, metadata, outputs[way])
            times[way].append(1000 * (time.process_time() - started))
    assert torch.allclose(*outputs.values(), atol=1e-5)
    return {way: round(statistics.median(each), 2) for way, each in times.items()}


if __name__ == "__main__":
    main()
