"""Kernels on NVIDIA GPUs that return the log-sum-exp, and which of them are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# The kernels in use: the first that takes an input runs. See `KERNELS`, and in `flex` "flex" (prefill) and "flex-grad"
# (training). `benchmarks/results/attention_gpu.json` shows on an H100 that all four are right. "flex" is compiled for
# half a minute, and prefill by tiles is not: it is off.
ON: tuple[str, ...] = ("flash", "efficient", "flex-grad")

TILE = 1024  # queries of a call: a GPU needs more of them at a time than a CPU
FEW = 64  # queries: with fewer `efficient` has too few programs to fill a GPU
ALIGNED = 16  # columns: rows of a bias begin at multiples of so many
PADDED = 32  # queries: `efficient` pads its log-sum-exp to a multiple of so many

Run = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kernel:
    """Attention with its log-sum-exp.

    Arguments:
        dtypes: the types that it takes.
        masks: whether it takes a mask.
        least: how many queries it needs.
        run: (query, key, value, mask, scale) -> output [B, H, n, D] and log-sum-exp [B, H, n], as
            `kernels.with_lse` has them. A query that sees no key may get anything.
    """

    dtypes: tuple[torch.dtype, ...]
    masks: bool
    least: int
    run: Run

    def takes(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether it runs on such tensors. They need no gradient: these kernels have none for the log-sum-exp."""
        return (
            query.dtype in self.dtypes
            and query.dtype == key.dtype == value.dtype
            and (mask is None or self.masks)
            and query.shape[2] >= self.least
            and all(_lies_well(tensor) for tensor in (query, key, value))
        )


def chosen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Run | None:
    """The first kernel in use that takes such tensors; None for none."""
    if query.device.type != "cuda" or torch.is_grad_enabled():
        return None
    kernels = (KERNELS[name] for name in ON if name in KERNELS)
    return next((kernel.run for kernel in kernels if kernel.takes(query, key, value, mask)), None)


def tile(query: Tensor, default: int) -> int:
    """How many queries share a call. Without a kernel for masks all logits of a call lie in memory: few then."""
    wide = query.device.type == "cuda" and "efficient" in ON and query.dtype in KERNELS["efficient"].dtypes
    return TILE if wide else default


@contextmanager
def using(*names: str) -> Iterator[None]:
    """Within, these kernels are in use, for all threads: for tests and benchmarks."""
    global ON
    before, ON = ON, names
    try:
        yield
    finally:
        ON = before


def flash(query: Tensor, key: Tensor, value: Tensor, mask: None, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention. It takes fewer key heads than heads: head h reads those of head ⌊h/(H/H_kv)⌋."""
    found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, scale=scale)
    return found[0], found[1]


def efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The memory-efficient kernel."""
    tensors = packed(query, key, value) if mask is None else repeated(query, key, value)
    bias = None if mask is None else bias_of(mask, tensors[0])
    output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(*tensors, bias, True, scale=scale)
    output, lse = output, lse[..., : tensors[0].shape[2]]
    return output.reshape(*query.shape[:3], -1), lse.reshape(query.shape[:3])


def packed(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of the heads that share a key, one behind the other: as many heads as key heads."""
    batch, heads, tokens, width = query.shape
    return query.reshape(batch, key.shape[1], heads // key.shape[1] * tokens, width), key, value


def repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The keys of each head: as many key heads as heads. A mask then is one for all heads."""
    group = query.shape[1] // key.shape[1]
    if group == 1:
        return query, key, value
    return query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)


def bias_of(mask: Tensor, query: Tensor) -> Tensor:
    """A mask as what it adds to the logits, [B, H, n, m]: its rows begin where the kernel wants them to."""
    batch, heads, tokens, _ = query.shape
    columns = mask.shape[-1]
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, float("-inf"))
    bias = pad(bias, (0, -columns % ALIGNED))[..., :columns]
    return bias.expand(batch, heads, tokens, columns)


def _lies_well(tensor: Tensor) -> bool:
    """Whether each vector of a head lies at a multiple of 16 bytes, as these kernels load it."""
    size, width = tensor.element_size(), tensor.shape[-1]
    strides = all(stride * size % 16 == 0 for stride in tensor.stride()[:-1])
    return (
        tensor.stride(-1) == 1
        and strides
        and width * size % 16 == 0
        and width % 8 == 0
        and width <= 256
        and (tensor.storage_offset() * size % 16 == 0)
    )


KERNELS = {
    "flash": Kernel((torch.bfloat16, torch.float16), False, 1, flash),  # type: ignore[arg-type]
    "efficient": Kernel((torch.bfloat16, torch.float16, torch.float32), True, FEW, efficient),
}
