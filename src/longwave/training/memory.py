"""The memory of a run on each of its devices, in bytes: what the precision, the engine and their number make of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from longwave.training.kept import Kept

FULL, HALF = 4, 2  # bytes of a number in float32 and bfloat16
ADAM = 2 * FULL  # two moments
LOGITS = 12.5  # bytes of a logit in training: itself, its softmax and its gradient, measured
BUCKET = 500_000_000  # numbers that DeepSpeed sends at a time
LIVE = 1_000_000_000  # weights that ZeRO-3 holds gathered
# Bytes of a weight of a quantized layer, with its scales: nf4 has a byte of 8 bits for each 64 weights, bitsandbytes'
# 8 bits a float32 for each row.
QUANTIZED = {"4bit": 0.52, "8bit": 1.01}
PROGRAM = {"cpu": 700 * 2**20, "cuda": 2**30}  # Python, torch and its kernels


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model.

    Arguments:
        total: parameters.
        trained: those that training changes.
        linear: those of linear layers, which autocast copies.
        layer: those of the largest decoder layer.
        outside: those outside the decoder layers.
        frozen: those of linear layers in decoder layers that training does not change.
    """

    total: int
    trained: int
    linear: int
    layer: int
    outside: int
    frozen: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Of an extended model; parameters may be on the meta device."""
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        inside = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
        everything = list(model.parameters())
        total = sum(parameter.numel() for parameter in everything)
        linear = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Linear)}
        own = (module.weight for layer in layers for module in layer.modules() if isinstance(module, nn.Linear))
        return cls(
            total,
            sum(parameter.numel() for parameter in everything if parameter.requires_grad),
            sum(weight.numel() for weight in linear.values()),
            max(inside, default=0),
            total - sum(inside),
            sum(weight.numel() for weight in own if not weight.requires_grad),
        )

    def saved(self, quantize: str | None) -> int:
        """Bytes that a quantized base saves: of linear layers in decoder layers, which bitsandbytes replaces."""
        if quantize is None:
            return 0
        return int(self.frozen * (FULL - QUANTIZED[quantize]))


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Arguments:
        weights: in float32, a device's part of them.
        casts: copies in bfloat16 that autocast makes.
        gathered: weights and gradients of the layers that are whole for a moment, where an engine divides the model.
        gradients: of what is trained, with the buffers that send them.
        optimizer: Adam's.
        activations: what a forward keeps for its gradient.
        logits: scores of the next token, with their gradient.
        program: Python, torch and its kernels.
    """

    weights: int
    casts: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    program: int

    @property
    def total(self) -> int:
        return sum(int(getattr(self, item.name)) for item in fields(self))

    def as_dict(self) -> dict[str, int]:
        """All parts, and their total."""
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "total": self.total}


@dataclass(frozen=True)
class Load:
    """What each device has to do.

    Arguments:
        kept: by the forward of a micro-batch.
        logits: how many of a micro-batch are in memory at once.
        checkpointing: whether activations are computed again.
        bf16: whether matrices are multiplied in bfloat16.
        kind: of the device, `cpu` or `cuda`.
        quantize: of the base: `4bit`, `8bit`, or None.
    """

    kept: Kept
    logits: int
    checkpointing: bool
    bf16: bool
    kind: str
    quantize: str | None = None


def memory(sizes: Sizes, load: Load, engine: str, devices: int) -> Memory:
    """What each of so many devices holds at the worst moment of a step."""
    dealt: dict[str, int] = _DEALT[engine](sizes, devices, HALF if load.bf16 else FULL)
    whole = engine in ("ddp", "zero2")
    dealt["weights"] -= sizes.saved(load.quantize) // (1 if whole else devices)
    casts = sizes.linear * HALF if load.bf16 and whole else 0
    if load.quantize is not None:  # a layer is widened when it is used, and forgotten
        casts = min(casts, 2 * HALF * sizes.layer)
    return Memory(
        casts=casts,
        activations=load.kept.total(checkpointing=load.checkpointing),
        logits=int(load.logits * LOGITS),
        program=PROGRAM.get(load.kind, PROGRAM["cuda"]),
        **dealt,
    )


def _copied(sizes: Sizes, devices: int, wide: int) -> dict[str, int]:
    """DDP, or one process: each device has all; the buckets that send gradients are a second copy of them."""
    sent = 2 if devices > 1 else 1
    return {
        "weights": FULL * sizes.total,
        "gathered": 0,
        "gradients": FULL * sizes.trained * sent,
        "optimizer": ADAM * sizes.trained,
    }


def _sharded(sizes: Sizes, devices: int, wide: int) -> dict[str, int]:
    """FSDP 2: a part of everything, and two layers with what is outside of layers, whole, and a layer's gradients."""
    whole = (3 * sizes.layer + sizes.outside) * wide if devices > 1 else 0
    return {
        "weights": FULL * sizes.total // devices,
        "gathered": whole,
        "gradients": FULL * sizes.trained // devices,
        "optimizer": ADAM * sizes.trained // devices,
    }


def _zero2(sizes: Sizes, devices: int, wide: int) -> dict[str, int]:
    """ZeRO-2: all weights, a part of gradients and optimizer, and two buckets."""
    return {
        "weights": FULL * sizes.total,
        "gathered": 0,
        "gradients": FULL * sizes.trained // devices + 2 * FULL * min(sizes.trained, BUCKET),
        "optimizer": ADAM * sizes.trained // devices,
    }


def _zero3(sizes: Sizes, devices: int, wide: int) -> dict[str, int]:
    """ZeRO-3: a part of everything, the weights that are live, and a bucket."""
    live = min(sizes.total, LIVE) + min(sizes.trained, BUCKET)
    return {**_sharded(sizes, devices, wide), "gathered": FULL * live if devices > 1 else 0}


_DEALT = {"ddp": _copied, "fsdp2": _sharded, "zero2": _zero2, "zero3": _zero3}
