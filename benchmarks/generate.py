"""Prefill and decode of an extended model against the same stock model: interleaved pairs in one process, ratios.

    python benchmarks/generate.py [--lengths 2048,8192,32768] [--size full|small] [--json generate.json]

Three ways to run one model with grouped queries (14 heads on 2 key/value heads), all with a DynamicCache:
`stock` as transformers has it; `longwave`, CLEX with per-query log-n at t = n/L; and `official`, which does
what the code published with CLEX does: keys are cached unrotated and all of them rotated at every step.
Decode starts from a cache filled with random keys; a pair is some steps of each, in alternating order.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, rotate_half

import longwave
from longwave.extensions.caches import FILLED_AT
from longwave.files import write_json
from longwave.provenance import versions

SIZES = {
    "full": {"hidden_size": 896, "intermediate_size": 5120, "num_hidden_layers": 6, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 8192},
    "small": {"hidden_size": 448, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 14,
              "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
L, FACTOR, STEPS = 2048, 17.0, 16  # 17: room for the steps after 32k


class RotatesAllKeys(nn.Module):
    """The official attention: an unrotated cache, every key rotated anew at every step."""

    def __init__(self, base: LlamaAttention, rotary: nn.Module) -> None:
        super().__init__()
        self.base, self.rotary = base, (rotary,)  # a tuple: not a child of its own

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any, past_key_values: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        base, (rows, n, _) = self.base, hidden_states.shape
        split = (rows, n, -1, base.head_dim)
        query, key, value = (
            p(hidden_states).view(split).transpose(1, 2) for p in (base.q_proj, base.k_proj, base.v_proj)
        )
        key, value = past_key_values.update(key, value, base.layer_idx)
        query, _ = apply_rotary_pos_emb(query, query, *position_embeddings)
        cos, sin = self.rotary[0](value, torch.arange(key.shape[-2], device=key.device)[None])
        key = key * cos[:, None] + rotate_half(key) * sin[:, None]
        attention = ALL_ATTENTION_FUNCTIONS[base.config._attn_implementation]
        output, _ = attention(base, query, key, value, attention_mask, scaling=base.scaling, **kwargs)
        return base.o_proj(output.reshape(rows, n, -1)), None


@contextmanager
def official(model: LlamaForCausalLM) -> Iterator[None]:
    layers = model.model.layers
    for layer in layers:
        layer.self_attn = RotatesAllKeys(layer.self_attn, model.model.rotary_emb)
    try:
        yield
    finally:
        for layer in layers:
            layer.self_attn = layer.self_attn.base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,8192,32768", help="tokens of context")
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 108 M parameters")
    parser.add_argument("--pairs", type=int, default=20, help=f"of decode, {STEPS} steps each")
    parser.add_argument("--prefills", type=int, default=5, help="pairs of prefill, at most 3 at 32k; 0: none")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[args.size], head_dim=64, max_position_embeddings=L)).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    longwave.extend(model, "clex", max_factor=FACTOR)
    trajectory = longwave.rotaries(model)[0].trajectory
    longwave.restore(model)

    @contextmanager
    def ours(length: int) -> Iterator[None]:
        longwave.extend(model, max_factor=FACTOR, trajectory=trajectory)
        longwave.set_policy(model, "fixed", max(1.0, (length + STEPS) / L))
        try:
            yield
        finally:
            longwave.restore(model)

    rows = []
    print(f"{parameters / 1e6:.0f} M parameters, {torch.get_num_threads()} threads")
    for length in map(int, args.lengths.split(",")):
        ways: dict[str, Callable[[], Any]] = {
            "stock": nullcontext,
            "longwave": lambda length=length: ours(length),
            "official": lambda: official(model),
        }
        prefill = args.prefills and compare(
            {name: ways[name] for name in ("stock", "longwave")},
            lambda _, length=length: prefill_seconds(model, length),
            args.prefills if length < 32768 else min(3, args.prefills),
        )
        caches = {name: random_cache(model, length) for name in ways}
        setattr(caches["longwave"], FILLED_AT, (max(1.0, (length + STEPS) / L),))  # or it would be filled again

        def step(name: str, caches: dict[str, DynamicCache] = caches, length: int = length) -> float:
            return decode_seconds(model, caches[name], length)

        decode = compare(ways, step, args.pairs)
        rows.append({"length": length, "prefill": prefill, "decode": decode})
        for what, found in (("prefill", prefill), ("decode", decode)):
            if not found:
                continue
            for name in found["ratios"]:
                low, high = found["quartiles"][name]
                print(f"{what} at {length}: {name} / stock {found['ratios'][name]:.3f} ({low:.3f} to {high:.3f}), "
                      f"stock {found['seconds']['stock'] * 1e3:.1f} ms", flush=True)  # fmt: skip
    if args.json:
        about = {"parameters": parameters, "threads": torch.get_num_threads(), "versions": versions()}
        write_json(args.json, {"benchmark": "generate", **about, "rows": rows})


def compare(ways: dict[str, Callable[[], Any]], seconds: Callable[[str], float], pairs: int) -> dict[str, Any]:
    """Medians of each way, and of the ratios to `stock` within each round; the order turns from round to round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, pairs):  # the first is a warm-up
        names = list(ways) if round_ % 2 == 0 else list(reversed(ways))
        for name in names:
            with ways[name]():
                spent = seconds(name)
            if round_ >= 0:
                times[name].append(spent)
    ratios = {
        name: sorted(a / b for a, b in zip(spent, times["stock"], strict=True))
        for name, spent in times.items()
        if name != "stock"
    }
    return {
        "ratios": {name: statistics.median(found) for name, found in ratios.items()},
        "quartiles": {name: [found[len(found) // 4], found[(3 * len(found)) // 4]] for name, found in ratios.items()},
        "seconds": {name: statistics.median(spent) for name, spent in times.items()},
    }


@torch.no_grad()
def prefill_seconds(model: LlamaForCausalLM, length: int) -> float:
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    started = now(model)
    model(ids, use_cache=True, logits_to_keep=1)
    return now(model) - started


def now(model: LlamaForCausalLM) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_cache(model: LlamaForCausalLM, length: int) -> DynamicCache:
    cache, config = DynamicCache(config=model.config), model.config
    for layer in range(config.num_hidden_layers):
        size = 2, 1, config.num_key_value_heads, length, model.model.layers[layer].self_attn.head_dim
        cache.update(*torch.randn(size, device=model.device, dtype=model.dtype), layer)
    return cache


def decode_seconds(model: LlamaForCausalLM, cache: DynamicCache, length: int) -> float:
    """Seconds of a token in `model.generate` on a filled cache, which is left as it was."""
    ids = torch.zeros(1, length + 1, dtype=torch.long, device=model.device)
    started = now(model)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=STEPS, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    spent = now(model) - started
    if cache.layers[0].is_croppable:  # a bounded cache goes on: its size stays
        cache.crop(length - cache.get_seq_length())
    return spent / STEPS


if __name__ == "__main__":
    main()
