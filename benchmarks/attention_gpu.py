"""Attention kernels and attention methods on a GPU: are they right, and how long do they take?

    python benchmarks/attention_gpu.py [--json benchmarks/results/attention_gpu.json]
    python benchmarks/attention_gpu.py --small          # everything that a CPU can run, in two minutes
    python benchmarks/attention_gpu.py --steps kernels,gradients,dot   # what is right; then layer,prefill,decode

A step that fails is recorded with its error, and the others run on. The record is written after every step. Timings are
medians, with all work of the device done before and after. `layer` is one layer of 14 heads on 2 key heads of size 64;
`prefill` and `decode` are a random model of 0.5 B parameters (Qwen 2's sizes), L = 4,096.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from generate import compare, now, prefill_seconds, random_cache
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import longwave
from longwave.attention import flex, get_attention, gpu_dot, gpu_kernels
from longwave.attention.dot import torch_dot
from longwave.attention.engine import Scoring, attend, dense, whole
from longwave.attention.kernels import with_lse
from longwave.attention.layout import Layout
from longwave.attention.placement import Placed, place
from longwave.attention.spectrum import Spectrum
from longwave.extensions.caches import FILLED_AT
from longwave.extensions.generation import prepare_cache
from longwave.files import write_json
from longwave.provenance import versions

RESULTS = Path(__file__).parent / "results" / "attention_gpu.json"
BANDED = ("two-band", "self-extend", "dca", "streaming-llm")
KERNELS = {
    "products": (),
    "efficient": ("efficient",),
    "flash": ("flash", "efficient"),
    "flex": ("flex", "flash", "efficient"),
}
GRADIENT = ("flex", "flex-grad")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADS, KEY_HEADS, WIDTH = 14, 2, 64
OPTIONS = {"token-select hit": {"threshold": -1.0}, "token-select miss": {"threshold": 1.1}}
DECODED = ("two-band", "streaming-llm", "token-select hit", "token-select miss", "infllm", "quest")
STEPS, ROUNDS = 8, 6  # of decode; the first round is a warm-up
ROOM = STEPS * (ROUNDS + 2)


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    tokens: int  # of the checks
    gradients: int
    keys: int  # of dot
    layer: tuple[int, ...]
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    original: int
    model: dict[str, int]


FULL = Sizes(
    1500, 1000, 131072, (8192, 32768), (8192, 32768), (32768, 131072), 4096,
    {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
)  # fmt: skip
SMALL = Sizes(
    200, 150, 3000, (512,), (512,), (768,), 256,
    {"hidden_size": 448, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512},
)  # fmt: skip


@dataclass
class Run:
    """The sizes, the device, and the record with its file."""

    sizes: Sizes
    device: torch.device
    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def part(self, step: str, name: str, function: Callable[[], Any]) -> None:
        """Run a part of a step, and record what it returns, or its error."""
        started = time.perf_counter()
        try:
            found = function()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found = {"error": f"{type(error).__name__}: {error}"[:2000], "at": f"{where.filename}:{where.lineno}"}
        spent = round(time.perf_counter() - started, 2)
        self.record.setdefault(step, {})[name] = {"result": found, "spent": spent}
        write_json(self.path, self.record)
        print(f"{step} {name} ({spent} s): {found}", flush=True)
        if self.gpu:
            torch.cuda.empty_cache()


def ways(
    model: PreTrainedModel, methods: list[str], length: int, options: dict[str, dict[str, Any]] | None = None
) -> dict[str, Callable[[], Any]]:
    """How a model of `length` tokens runs, by name; a name may have a word behind its method, and options."""
    t = length / model.config.max_position_embeddings

    @contextmanager
    def under(name: str) -> Iterator[None]:
        with longwave.extended(model, name.split()[0], max_factor=t, **(options or {}).get(name, {})):
            longwave.set_policy(model, "fixed", t)
            yield

    return {"stock": nullcontext, **{name: lambda name=name: under(name) for name in methods}}


def filled(model: PreTrainedModel, method: str, length: int, room: int) -> DynamicCache:
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


def bytes_held(cache: DynamicCache) -> int:
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, as a CPU needs them")
    parser.add_argument("--steps", default=",".join(ALL))
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the record goes")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.small:
        parser.error("there is no GPU here. Pass --small to run on the CPU.")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    run = Run(SMALL if args.small else FULL, device, args.json)
    card = torch.cuda.get_device_name() if run.gpu else "cpu"
    run.record |= {"benchmark": "attention_gpu", "card": card, "versions": versions(), "torch": torch.__version__}
    for step in args.steps.split(","):
        torch.manual_seed(0)
        ALL[step](run)


def tensors(run: Run, dtype: torch.dtype, tokens: int, batch: int = 1, width: int = WIDTH) -> list[Tensor]:
    heads = HEADS, KEY_HEADS, KEY_HEADS
    return [torch.randn(batch, count, tokens, width, device=run.device).to(dtype) for count in heads]


def placed_at(method: str, columns: Tensor, length: int, width: int) -> tuple[list[Placed], Scoring]:
    """The bands of a prompt at `length` tokens for L; columns are positions of keys, -1 for none."""
    t = (float(columns.max()) + 1) / length
    attention = get_attention(method).create(original_length=length, max_factor=t)
    theta = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device=columns.device) / (width // 2))
    spectrum = Spectrum(theta, theta / attention.factor(t))
    placed = place(attention.bands(t), spectrum, columns.clamp(min=0), columns, dtype=torch.float32)
    return placed, Scoring(Layout(), width**-0.5, getattr(attention, "mass", 0.0))


def prompt(run: Run, tokens: int, kind: str) -> Tensor:
    """Positions of columns: a plain row, two rows with padding, or two rows with holes."""
    if kind == "plain":
        return torch.arange(tokens, device=run.device)[None]
    left = 0, tokens // 5
    rows = [torch.cat([torch.full((n,), -1), torch.arange(tokens - n)]) for n in left]
    columns = torch.stack(rows).to(run.device)
    if kind == "holes":
        columns[:, tokens // 2 : tokens // 2 + 7] = -1
    return columns


def largest(found: Tensor, expected: Tensor, columns: Tensor) -> float:
    """The largest difference of queries that are no padding."""
    there = (columns >= 0).expand(found.shape[0], -1)[:, None, :, None]
    return float(torch.where(there, (found.double() - expected).abs(), 0.0).max())


def kernels(run: Run) -> None:
    """Each way to run bands against one dense softmax in float64, and the log-sum-exp of each kernel."""
    cases: list[tuple[str, str, str, int]] = []  # dtype, method, rows, head size
    for dtype in DTYPES:
        cases += [(dtype, method, "plain", WIDTH) for method in BANDED]
        cases += [(dtype, "two-band", rows, WIDTH) for rows in ("padded", "holes")]
    cases += [("bfloat16", "two-band", "plain", width) for width in (80, 128)]
    for dtype, method, rows, width in cases:
        # Lengths differ from case to case: a kernel that is compiled for one must take the next.
        tokens = run.sizes.tokens + 37 * BANDED.index(method)
        columns = prompt(run, tokens, rows)
        placed, how = placed_at(method, columns, run.sizes.tokens // 5, width)
        q, k, v = tensors(run, DTYPES[dtype], tokens, 1 if rows == "plain" else 2, width)
        expected = dense(q.double(), k.double(), v.double(), placed, how)
        for name, on in KERNELS.items():

            def check(on: tuple[str, ...] = on, q: Tensor = q, k: Tensor = k, v: Tensor = v, placed: Any = placed,
                      how: Any = how, expected: Tensor = expected, columns: Tensor = columns) -> Any:  # fmt: skip
                with torch.no_grad(), gpu_kernels.using(*on):
                    if "flex" in on and not run.gpu:
                        found = whole(q, k, v, placed, how)
                    else:
                        found = attend(q, k, v, placed, how)
                return {"output": largest(found, expected, columns), "typical": float(expected.abs().mean())}

            run.part("kernels", f"{name} {dtype} {method} {rows} {width}", check)
    for dtype in DTYPES:
        q, k, v = tensors(run, DTYPES[dtype], run.sizes.tokens, 2)
        for name in gpu_kernels.KERNELS:
            run.part("kernels", f"lse of {name} {dtype}", lambda name=name, given=(q, k, v): lse_of(name, *given))
        run.part("kernels", f"lse of flex {dtype}", lambda given=(q, k, v): lse_of_flex(run, *given))


@torch.no_grad()
def lse_of(name: str, q: Tensor, k: Tensor, v: Tensor) -> Any:
    """A kernel without a mask, with one (if it takes masks), and with one query as in decode."""
    kernel, found = gpu_kernels.KERNELS[name], {}
    mask = torch.rand(2, 1, q.shape[2], k.shape[2], device=q.device) < 0.5
    mask[:, :, :9] = False
    mask[:, :, 9:40, : k.shape[2] // 2] = False
    for what, query, seen in (("all", q, None), ("masked", q, mask), ("decode", q[:, :, -1:], None)):
        packed = query if query.shape[2] > 1 else query.reshape(2, KEY_HEADS, -1, q.shape[-1])
        if not kernel.takes(packed, k, v, seen):
            found[what] = "not taken"
            continue
        with gpu_kernels.using(name):
            if gpu_kernels.chosen(packed, k, v, seen) is None:
                found[what] = "needs a GPU"
                continue
            output, lse = with_lse(query, k, v, seen, 0.125)
        with gpu_kernels.using():
            expected = with_lse(query.double(), k.double(), v.double(), seen, 0.125)
        found[what] = differences(output, lse, *expected)
    return found


@torch.no_grad()
def lse_of_flex(run: Run, q: Tensor, k: Tensor, v: Tensor) -> Any:
    columns, found = prompt(run, q.shape[2], "padded"), {}
    for number, band in enumerate(placed_at("two-band", columns, run.sizes.tokens // 5, WIDTH)[0]):
        mask = flex.block_mask(band, slice(0, k.shape[2]), 2)
        output, lse = flex.attend(q, k, v, mask, 0.125)
        seen = band.mask(slice(0, q.shape[2]), slice(0, k.shape[2]))
        expected = with_lse(q.double(), k.double(), v.double(), seen, 0.125)
        found[f"band {number}"] = differences(output, lse, *expected)
    return found


def differences(output: Tensor, lse: Tensor, expected: Tensor, expected_lse: Tensor) -> dict[str, Any]:
    empty = expected_lse.isneginf()
    return {
        "output": float((output.double() - expected).abs().max()),
        "lse": float(torch.where(empty, 0.0, lse.double() - expected_lse).abs().max()),
        "empty": bool(torch.equal(empty, lse.isneginf())),
    }


def gradients(run: Run) -> None:
    """Gradients through flex_attention and the merge, and those of mass, against those of one dense softmax."""
    for dtype in DTYPES:
        for method in BANDED:

            def check(dtype: str = dtype, method: str = method) -> Any:
                columns = prompt(run, run.sizes.gradients, "padded")
                placed, how = placed_at(method, columns, run.sizes.gradients // 5, WIDTH)
                mass = torch.full((HEADS,), 0.5, device=run.device, requires_grad=True)
                how = Scoring(how.layout, how.scale, mass)
                given = [x.requires_grad_() for x in tensors(run, DTYPES[dtype], run.sizes.gradients, 2)]
                weights = torch.randn_like(given[0]) * (columns >= 0)[:, None, :, None]
                wide = [x.detach().float().requires_grad_() for x in given]
                expected = grads(dense(*wide, placed, how), weights, [*wide, mass])
                with gpu_kernels.using(*GRADIENT), patch.object(flex, "DENSE", 0):
                    ours = flex.takes(*given, grad=True)
                    found = grads(attend(*given, placed, how), weights, [*given, mass])
                pairs = zip("qkvm", found, expected, strict=True)
                return {"flex": ours} | {
                    name: float((a.float() - b).abs().max() / b.abs().max().clamp(min=1e-9))
                    for name, a, b in pairs
                    if a is not None and b is not None
                }

            run.part("gradients", f"{dtype} {method}", check)


def grads(output: Tensor, weights: Tensor, of: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad((output * weights).sum(), of, allow_unused=True)


def dot(run: Run) -> None:
    """The Triton kernel against PyTorch."""
    for dtype in DTYPES:
        for width in (64, 80, 128):
            run.part("dot", f"{dtype} {width}", lambda dtype=dtype, width=width: dots(run, DTYPES[dtype], width))


@torch.no_grad()
def dots(run: Run, dtype: torch.dtype, width: int) -> Any:
    if not gpu_dot.AVAILABLE:
        return "needs a GPU and Triton"
    count, found = run.sizes.keys + 5, {}
    q = torch.randn(HEADS, width, device=run.device)
    plain = torch.randn(KEY_HEADS, count, width, device=run.device).to(dtype)
    strided = torch.randn(count, KEY_HEADS, width, device=run.device).to(dtype).transpose(0, 1)
    for name, k in (("plain", plain), ("strided", strided)):
        for first, stop in ((0, count), (3, count - 1), (1000, 1001), (7, 7)):
            ours, theirs = gpu_dot.dot(q, k, first, stop), torch_dot(q, k, first, stop)
            found[f"{name} {first}:{stop}"] = float((ours - theirs).abs().max()) if ours.numel() else 0.0
    seconds = {
        "triton": median(run, lambda: gpu_dot.dot(q, plain, 0, count), 20),
        "torch": median(run, lambda: torch_dot(q, plain, 0, count), 20),
    }
    read = plain.nbytes / seconds["triton"] / 1e9
    return {"largest": max(found.values()), **found, "seconds": seconds, "GB/s": round(read)}


def median(run: Run, function: Callable[[], Any], rounds: int) -> float:
    """Seconds of a call, the median after two warm-ups."""
    found = []
    for _ in range(rounds + 2):
        wait(run)
        started = time.perf_counter()
        function()
        wait(run)
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def wait(run: Run) -> None:
    if run.gpu:
        torch.cuda.synchronize()


def peak(run: Run, function: Callable[[], Any]) -> int | None:
    """Bytes that a call needs beside what is there."""
    if not run.gpu:
        return None
    wait(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    wait(run)
    return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def layer(run: Run) -> None:
    """Prefill of one layer, stock and by each way to run the bands."""
    for tokens in run.sizes.layer:
        q, k, v = tensors(run, torch.bfloat16, tokens)
        columns = prompt(run, tokens, "plain")

        def stock(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def measured(function: Callable[[], Any]) -> Any:
            return {"seconds": median(run, function, 5), "bytes": peak(run, function)}

        run.part("layer", f"stock {tokens}", lambda stock=stock: measured(stock))
        for method in ("two-band", "streaming-llm"):
            placed, how = placed_at(method, columns, run.sizes.original, WIDTH)
            for name, on in KERNELS.items():

                def ours(on: tuple[str, ...] = on, given: Any = (q, k, v, placed, how)) -> Any:
                    with gpu_kernels.using(*on):
                        return measured(lambda: attend(*given))

                run.part("layer", f"{method} {name} {tokens}", ours)


def built(run: Run) -> Qwen2ForCausalLM:
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "tie_word_embeddings": True}
    config = Qwen2Config(**run.sizes.model, **heads, max_position_embeddings=run.sizes.original)
    with run.device:
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    run.record["model"] = {"parameters": sum(p.numel() for p in model.parameters()), "L": run.sizes.original}
    return model


def prefill(run: Run) -> None:
    """A prompt through the model: two-band by each kind of kernel against stock."""
    model = built(run)
    for tokens in run.sizes.prefill:
        for name in ("flex", "flash"):

            def measured(name: str = name, tokens: int = tokens) -> Any:
                with gpu_kernels.using(*KERNELS[name]):
                    under = ways(model, ["two-band"], tokens)
                    found = compare(under, lambda _: prefill_seconds(model, tokens), 3)
                    found["bytes"] = {way: peaked(under[way], tokens) for way in under}
                return found

            def peaked(under: Callable[[], Any], tokens: int) -> int | None:
                with under():
                    return peak(run, lambda: prefill_seconds(model, tokens))

            run.part("prefill", f"{name} {tokens}", measured)


def decode(run: Run) -> None:
    """Tokens one by one behind a filled cache, interleaved; then two-band without kernels of the GPU."""
    model = built(run)
    for tokens in run.sizes.decode:
        run.part("decode", f"flash {tokens}", lambda tokens=tokens: decoded(run, model, tokens, DECODED, "flash"))
        run.part(
            "decode",
            f"products {tokens}",
            lambda tokens=tokens: decoded(run, model, tokens, ("two-band",), "products"),
        )


@torch.no_grad()
def decoded(run: Run, model: Qwen2ForCausalLM, tokens: int, names: Iterable[str], kernel: str) -> Any:
    under, caches, errors = {"stock": nullcontext}, {}, {}
    caches["stock"] = filled(model, "stock", tokens, ROOM)
    with gpu_kernels.using(*KERNELS[kernel]):
        for name in names:
            way = ways(model, [name], tokens + ROOM, OPTIONS)[name]
            try:  # a method that fails leaves the others
                caches[name] = cache_of(model, name, tokens, way)
                with way():
                    steps(model, caches[name], 1)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"[:500]
                caches.pop(name, None)
            else:
                under[name] = way
        found = compare(under, lambda name: steps(model, caches[name], STEPS), ROUNDS - 1)
        found["bytes_held"] = {name: bytes_held(cache) for name, cache in caches.items()}
        found["waits"] = {name: waits(run, model, caches[name], way) for name, way in under.items()}
        if run.gpu:
            found["bytes"] = {}
            for name, way in under.items():
                with way():
                    found["bytes"][name] = peak(run, lambda name=name: steps(model, caches[name], 1))
    return found | ({"errors": errors} if errors else {})


def cache_of(model: Qwen2ForCausalLM, name: str, tokens: int, under: Callable[[], Any]) -> DynamicCache:
    """A cache of random keys; one that the method fills itself where it needs to have read the text."""
    method = name.split()[0]
    if method != "infllm":
        return filled(model, method, tokens, ROOM)
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device=model.device)
    with under():
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def steps(model: Qwen2ForCausalLM, cache: DynamicCache, count: int) -> float:
    """Seconds of a token."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    started = now(model)
    for _ in range(count):
        ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return (now(model) - started) / count


def waits(run: Run, model: Qwen2ForCausalLM, cache: DynamicCache, under: Callable[[], Any]) -> int | None:
    """How often a step waits for the device."""
    if not run.gpu:
        return None
    with under(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


ALL = {"kernels": kernels, "gradients": gradients, "dot": dot, "layer": layer, "prefill": prefill, "decode": decode}

if __name__ == "__main__":
    main()
