"""How a backend of vLLM lays keys and values into its cache: looked at when the engine starts, and not assumed.

Since vLLM 0.32 a cache has the shape [blocks, key heads, tokens of a block, 2 D] for all backends. What lies where in
it is the backend's. Every reader is tried on what the backend has written into a scratch cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longwave.serving.vllm.banding import Reader, attention_modules

SEED = 0


def halves(kv_cache: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Keys, then values, in each row of 2 D: FlashAttention and Triton."""
    k, v = kv_cache.chunk(2, dim=-1)
    return _gathered(k, blocks), _gathered(v, blocks)


def columns(kv_cache: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The keys of a block, a row for each dimension, and then its values, a row for each token: CPUs."""
    count, heads, size, double = kv_cache.shape
    both = kv_cache.view(count, heads, 2, -1)
    k = both[:, :, 0].view(count, heads, double // 2, size).mT
    v = both[:, :, 1].view(count, heads, size, double // 2)
    return _gathered(k, blocks), _gathered(v, blocks)


def _gathered(cached: Tensor, blocks: Tensor) -> Tensor:
    """[all blocks, H_kv, tokens, D] -> [B, H_kv, tokens, D].

    The dimensions of a key lie together then: kernels for CPUs take that for granted. Where the cache has them apart,
    this is a second copy.
    """
    found = cached.transpose(0, 1)[:, blocks.long()].transpose(0, 1)
    if found.stride(-1) != 1:
        found = found.contiguous()
    return found.flatten(2, 3)


READERS: tuple[Reader, ...] = (halves, columns)


def look(worker: Any) -> str | None:
    """Find the reader of every attention layer of a worker; what is wrong if there is none. Runs in the worker."""
    for name, module in attention_modules(worker.get_model()):
        bands = module.impl.longwave_bands
        bands.read = _reader(module)
        if bands.read is None:
            return (
                f"{type(module.impl).__name__} lays the keys of {name} into its cache in a way that longwave does not "
                f"know (shape {tuple(module.kv_cache.shape)}, {module.kv_cache.dtype}). On a CPU start with "
                "--dtype float32, or export the model under a scaling method alone, such as yarn."
            )
    return None


@torch.inference_mode()
def _reader(module: Any) -> Reader | None:
    """The reader that gives back what the backend has written into the second of two blocks."""
    own = module.kv_cache
    scratch = torch.zeros_like(own[:2])
    heads, size, width = own.shape[1], own.shape[2], module.head_size
    generator = torch.Generator().manual_seed(SEED)
    key, value = (
        torch.randn(size, heads, width, generator=generator).to(own.device, own.dtype).contiguous() for _ in range(2)
    )
    slots = torch.arange(size, 2 * size, device=own.device)
    module.impl.do_kv_cache_update(module, key, value, scratch, slots)
    blocks = torch.tensor([[1]], device=own.device)
    for reader in READERS:
        try:
            k, v = reader(scratch, blocks)
        except RuntimeError:  # a view that this cache does not have
            continue
        if torch.equal(k[0].transpose(0, 1), key) and torch.equal(v[0].transpose(0, 1), value):
            return reader
    return None
