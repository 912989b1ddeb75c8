"""What a run would be and need, from its settings and the model's config.json: no weights are read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from longwave.attention.flex import DENSE
from longwave.checkpoints.folder import resolve
from longwave.checkpoints.outline import read_outline
from longwave.extensions.handle import extension
from longwave.training.config import TrainConfig
from longwave.training.draw import LengthSampler
from longwave.training.going_further import with_own_method
from longwave.training.kept import Forward, count_kept
from longwave.training.loss import held_at_once
from longwave.training.machine import GIB, Machine
from longwave.training.memory import Load, Memory, Sizes, memory
from longwave.training.prepare import attach_method
from longwave.training.ulysses import require_even


@dataclass(frozen=True)
class Drawn:
    """A kind of micro-batch.

    Arguments:
        kind: `real windows`, `rows with skips`, `rows without gaps`.
        share: of the micro-batches.
        tokens: of its windows, each length that can be drawn.
        factors: the smallest t, and the largest.
    """

    kind: str
    share: float
    tokens: tuple[int, ...]
    factors: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """What a run would be and need.

    Arguments:
        model: its name.
        sizes: its parameters.
        original_length: L.
        steps, step_tokens: of the run, and tokens of a step on all devices.
        rate: learning rate of the weights, or of their LoRA; None where neither is trained.
        has_lora: whether the rate is that of a LoRA.
        drawn: the kinds of micro-batches.
        machine: with devices, engine and memory filled in.
        precision: of the products of matrices.
        memory: on each device, as the settings say; None for a model whose forward cannot be counted.
        other: the same with checkpointing where the settings go without, and the other way round.
    """

    model: str
    sizes: Sizes
    original_length: int
    steps: int
    step_tokens: int
    rate: float | None
    has_lora: bool
    drawn: tuple[Drawn, ...]
    machine: Machine
    precision: str
    checkpointing: bool
    memory: Memory | None
    other: Memory | None

    @property
    def available(self) -> int:
        """Bytes of a device."""
        return self.machine.memory or 0

    @property
    def fits(self) -> bool | None:
        """Whether the run fits; None where it is not known."""
        return None if self.memory is None else self.memory.total <= self.available

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values; memory in bytes."""
        return {
            "model": self.model,
            "original_length": self.original_length,
            "parameters": self.sizes.total,
            "trained_parameters": self.sizes.trained,
            "steps": self.steps,
            "tokens_per_step": self.step_tokens,
            "tokens": self.steps * self.step_tokens,
            "learning_rate": self.rate,
            "windows": [asdict(each) for each in self.drawn],
            "devices": self.machine.devices,
            "engine": self.machine.engine,
            "precision": self.precision,
            "gradient_checkpointing": self.checkpointing,
            "device_memory": self.available,
            "memory": None if self.memory is None else self.memory.as_dict(),
            "memory_if_checkpointing_is_switched": None if self.other is None else self.other.as_dict(),
            "fits": self.fits,
        }

    def require_fit(self) -> None:
        """A `ValueError` for a run that the memory of a device cannot hold."""
        if self.memory is None or self.fits:
            return
        remedies = [] if self.checkpointing else ["--gradient-checkpointing"]
        remedies += ["a smaller --batch-size"] if self.memory.activations + self.memory.logits > GIB else []
        shared = "more --devices with --sequence-parallel 2"
        remedies += [shared] if self.memory.activations > self.available // 2 else []
        remedies += ["more --devices with --engine fsdp2", "--freeze-weights"]
        raise ValueError(
            f"this run needs {self.memory.total / GIB:.1f} GB on each device, which has {self.available / GIB:.1f} GB. "
            f"Try {', '.join(remedies[:-1])} or {remedies[-1]}."
        )


def plan(model: str, settings: Mapping[str, Any], machine: Machine) -> Plan:
    """Plan a run; see `longwave.train` for its settings.

    Arguments:
        model: a folder, or a name on the Hugging Face hub. Its config.json is enough.
        machine: what is None there is taken from this machine.

    Raises:
        ValueError: for settings that do not fit the model or each other.
    """
    found = resolve(model)
    config = TrainConfig.create(**with_own_method(found, settings))
    kind = "cuda" if machine.device_memory is not None else _kind()
    machine = here(machine)
    found.check()
    network = read_outline(found).extended()
    sampler = attach_method(network, config)
    adapted = extension(network).adapter is not None or config.freeze_weights
    if config.quantize is not None and not adapted:
        raise ValueError(f"quantize {config.quantize} holds weights that cannot be trained. Train a LoRA (lora r=16).")
    row, devices = config.row_tokens(sampler.original_length), machine.devices or 1
    if config.sequence_parallel > 1:
        require_even(network, config, sampler.original_length)
    if devices % config.sequence_parallel:
        raise ValueError(
            f"sequence_parallel {config.sequence_parallel} needs a multiple of {config.sequence_parallel} devices, and "
            f"this plan is for {devices}. Pass --devices {config.sequence_parallel}."
        )
    bf16 = config.precision == "bf16" or (config.precision == "auto" and kind != "cpu")
    most = max([1, *(sampler.multiples(config.batch_size, row) if config.long_share else [])])
    rows, length = config.batch_size // most, row * most
    shards = config.sequence_parallel
    bands, dense = _bands(network, config, rows * length**2 // shards, kind)
    forward = Forward(rows, length, bf16, bands, dense, not config.freeze_weights)
    kept = count_kept(read_outline(found).plain, forward)
    kept = None if kept is None else kept.shared(shards)
    sizes, vocabulary = Sizes.of(network), network.config.get_text_config().vocab_size
    logits = held_at_once(rows * length * vocabulary // shards, config.loss_blocks, kind)
    needs = [
        None if kept is None else memory(sizes, Load(kept, logits, checkpointing, bf16, kind, config.quantize),
                                         str(machine.engine), devices)
        for checkpointing in (config.gradient_checkpointing, not config.gradient_checkpointing)
    ]  # fmt: skip
    has_lora = extension(network).adapter is not None
    rate = None if config.freeze_weights else config.rate(network.num_parameters(), lora=has_lora)
    return Plan(
        found.name, sizes, sampler.original_length, config.steps,
        config.batch_size * row * config.accumulation * (devices // shards),
        rate, has_lora, drawn(sampler, config, row), machine,
        "bf16" if bf16 else "fp32", config.gradient_checkpointing, *needs,
    )  # fmt: skip


def here(machine: Machine) -> Machine:
    """A machine, with what is not said of it taken from this one."""
    devices = machine.devices or int(os.environ.get("WORLD_SIZE", 1))
    size = machine.memory
    if size is None and _kind() == "cuda":
        size = torch.cuda.get_device_properties(0).total_memory
    if size is None:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices  # its processes share it
    return replace(machine, devices=devices, engine=machine.engine or "ddp", device_memory=f"{size / GIB:.6f}G")


def drawn(sampler: LengthSampler, config: TrainConfig, row: int) -> tuple[Drawn, ...]:
    """The kinds of micro-batches, without those of no share."""
    original, whole = sampler.original_length, sampler.factors == "integer"

    def factor(tokens: int) -> float:
        least = max(1.0, tokens / original)
        return float(math.ceil(least)) if whole else least

    windows = tuple(row * multiple for multiple in sampler.multiples(config.batch_size, row))
    least = sampler.max_factor if sampler.factors == "fixed" else max(sampler.least_factor, factor(row))
    ends = factor(min(windows, default=row)), factor(max(windows, default=row))
    kinds = [
        Drawn("real windows", config.long_share, windows, ends),
        Drawn("rows with skips", 1 - config.long_share - config.short_share, (row,), (least, sampler.max_factor)),
        Drawn("rows without gaps", config.short_share, (row,), (factor(row), factor(row))),
    ]  # fmt: skip
    return tuple(each for each in kinds if each.share > 1e-9)


def _kind() -> str:
    """The kind of device that a run takes here."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def _bands(network: PreTrainedModel, config: TrainConfig, pairs: int, kind: str) -> tuple[int, bool]:
    """How many bands the attention method has, and whether a softmax over all its logits is in memory."""
    attention = extension(network).attention
    if attention is None:
        return 0, False
    heads = network.config.get_text_config().num_attention_heads
    return len(attention.bands(config.largest_draw)), kind != "cuda" or pairs * heads < DENSE
