"""`python on_cpu.py train ...`: the command line, with two engines that are made for GPUs on CPUs.

accelerate runs FSDP only where it finds GPUs, and DDP elsewhere. DeepSpeed compiles a helper for CPUs at its first
start, which takes minutes. Neither changes what is computed. LONGWAVE_WATCH names a file for the first t, its
frequencies, and the gradient of the first step.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from longwave.__main__ import run
from longwave.extensions.rotary import ScaledRotary
from longwave.training.learned import learned_parameters
from longwave.training.trainer import LengthTrainer

SEEN: dict[str, Any] = {}


def run_fsdp_on_cpus() -> None:
    start = AcceleratorState.__init__

    def started(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        start(self, *arguments, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = started  # type: ignore[method-assign]


def need_no_compiler() -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def watch_deepspeed() -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    step = deepspeed.DeepSpeedEngine.step

    def stepping(self: Any, *arguments: Any, **others: Any) -> Any:
        if self.is_gradient_accumulation_boundary():
            write({name: safe_get_full_grad(each) for name, each in learned_parameters(self.module).items()})
        return step(self, *arguments, **others)

    deepspeed.DeepSpeedEngine.step = stepping


def write(gradients: dict[str, Any]) -> None:
    """Once, in the first step; a gradient that is shared among processes is gathered in all of them."""
    if "gradients" in SEEN:
        return
    whole = {name: each.full_tensor() if hasattr(each, "full_tensor") else each for name, each in gradients.items()}
    SEEN["gradients"] = {name: each.detach().float().clone() for name, each in whole.items()}
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(SEEN, os.environ["LONGWAVE_WATCH"])


class Watch(TrainerCallback):
    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **others: Any) -> None:
        write({name: parameter.grad for name, parameter in learned_parameters(model).items()})


def watch() -> None:
    turn, begin = ScaledRotary.turn, LengthTrainer.__init__

    def turning(self: ScaledRotary, t: float) -> Any:
        found = turn(self, t)
        SEEN.setdefault("theta", (t, found.inv_freq.detach().clone()))
        return found

    def beginning(self: LengthTrainer, *arguments: Any, **others: Any) -> None:
        begin(self, *arguments, **others)
        if not self.is_deepspeed_enabled:
            self.add_callback(Watch())

    ScaledRotary.turn, LengthTrainer.__init__ = turning, beginning  # type: ignore[method-assign]


if __name__ == "__main__":
    run_fsdp_on_cpus()
    engine = "--deepspeed" in sys.argv or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if engine or "--sequence-parallel" in sys.argv or "PARALLELISM_CONFIG_SP_SIZE" in os.environ:
        need_no_compiler()
    if "LONGWAVE_WATCH" in os.environ:
        watch()
        if engine:
            watch_deepspeed()
    sys.exit(run())
