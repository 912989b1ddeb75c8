"""The engines of a run: which one runs, what each needs, and what is refused because it would be wrong without a word.

| engine | what is special |
|---|---|
| DDP | nothing: its run is that of one process |
| FSDP 2 | the rotary module is a unit of its own: it computes in float32 and stays whole between the layers |
| ZeRO | no `bf16.enabled` with learned frequencies; small parameters of the extension are in each process |
| FSDP 2, ZeRO-3 | no process has all weights: the result is gathered into a copy of the model, see `gathered.py` |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from longwave.extensions.handle import extension
from longwave.extensions.steering import text_model
from longwave.files import read_object

if TYPE_CHECKING:
    from transformers import Trainer

AUTOCAST = '"torch_autocast": {"enabled": true, "dtype": "bfloat16"}'
NAMES = {"DEEPSPEED": "DeepSpeed", "FSDP": "FSDP", None: "DDP or one process"}
ZERO, THRESHOLD = "zero_optimization", "stage3_param_persistence_threshold"


class Engine(Enum):
    """What runs the optimizer steps of several processes."""

    ONE = "one process"
    DDP = "DDP"
    FSDP1 = "FSDP 1"
    FSDP2 = "FSDP 2"
    ZERO = "ZeRO"  # stages 0, 1 and 2: each process has all weights
    ZERO3 = "ZeRO-3"

    @classmethod
    def of(cls, trainer: Trainer) -> Engine:
        """The engine of a trainer."""
        if trainer.is_deepspeed_enabled:
            stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
            return cls.ZERO3 if stage == 3 else cls.ZERO
        if trainer.is_fsdp_enabled:
            return cls.FSDP2 if trainer.accelerator.is_fsdp2 else cls.FSDP1
        return cls.DDP if trainer.args.world_size > 1 else cls.ONE

    @property
    def shards(self) -> bool:
        """Whether no process has all weights."""
        return self in (Engine.FSDP1, Engine.FSDP2, Engine.ZERO3)

    @property
    def has_own_checkpoints(self) -> bool:
        """Whether the engine writes weights and optimizer itself, in a layout of its own."""
        return self.shards or self is Engine.ZERO

    @property
    def clips_as_a_whole(self) -> bool:
        """Whether all gradients are clipped by one norm: in DeepSpeed's engine, and where FSDP 1 flattens them."""
        return self in (Engine.ZERO, Engine.ZERO3, Engine.FSDP1)


def asked_for() -> str | None:
    """The engine that `accelerate launch` asks for in the environment, if it is another one than DDP."""
    for name in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            return name
    return None


def deepspeed_file(path: str | None) -> dict[str, Any] | None:
    """The config of DeepSpeed that the run names; None for a run without one.

    Raises:
        ValueError: if DeepSpeed is not installed, or the file is no JSON object.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise ValueError(f"deepspeed {path} does not exist. Pass a config of DeepSpeed, a JSON file.")
    found = read_object(Path(path))
    from transformers.integrations.deepspeed import is_deepspeed_available

    if not is_deepspeed_available():
        raise ValueError("--deepspeed needs DeepSpeed: pip install 'longwave[deepspeed]'.")
    return dict(found)


def prepare(arguments: TrainingArguments, network: PreTrainedModel) -> None:
    """Refuse engines that would change what is learned, and set what they need to know of the extension.

    Raises:
        ValueError: saying what to change.
    """
    refuse_parallel_sequences(arguments)
    plugin = arguments.deepspeed_plugin
    if plugin is not None:
        config = plugin.hf_ds_config.config
        refuse_cast(config, network)
        keep_whole(config, network)
    handle = extension(network)
    elsewhere = _outside(network)
    arguments.ddp_find_unused_parameters = bool(elsewhere) and handle.adapter is None


def refuse_cast(config: Mapping[str, Any], network: PreTrainedModel) -> None:
    """A `ValueError` for an engine that casts all parameters to 16 bits where the extension learns some.

    In bfloat16 a frequency is off by 1 %, which is an angle of 2.4 rad after 2,048 tokens.
    """
    learned = [part for part in ("field", "heads") if extension(network).learned[part]]
    for kind in ("bf16", "fp16"):
        if learned and config.get(kind, {}).get("enabled") in (True, "auto"):
            what = "frequencies" if "field" in learned else "scalars of heads"
            raise ValueError(
                f"DeepSpeed with {kind}.enabled casts the learned {what} to 16 bits. Take {kind} out of its config and "
                f"put this in its place, which keeps them in float32: {AUTOCAST}"
            )


def keep_whole(config: dict[str, Any], network: PreTrainedModel) -> None:
    """Let ZeRO-3 leave the parameters of the extension whole: layers read them outside of the module that has them."""
    zero = config.get(ZERO, {})
    if zero.get("stage") != 3:
        return
    learned = extension(network).learned
    least = max((parameter.numel() for part in ("field", "heads") for parameter in learned[part]), default=0)
    given = zero.get(THRESHOLD, 10**5)  # DeepSpeed's own
    if given == "auto":
        given = 10 * int(network.config.get_text_config(decoder=True).hidden_size)  # as transformers has it
    zero[THRESHOLD] = max(int(given), least)


def refuse_parallel_sequences(arguments: TrainingArguments) -> None:
    """A `ValueError` for layouts that longwave does not know; Ulysses it runs itself, see `ulysses.py`."""
    config = getattr(arguments, "parallelism_config", None)
    if int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", 1)) > 1 or (config is not None and config.cp_enabled):
        raise ValueError(
            "context parallelism runs on GPUs and plain causal attention alone: log-n, bands and documents need whole "
            "rows. Set parallelism_config_cp_size to 1, and pass --sequence-parallel N (DeepSpeed's Ulysses)."
        )
    if config is not None and config.sp_enabled:
        raise ValueError("longwave runs Ulysses itself. Leave parallelism_config out, and pass sequence_parallel=N.")


def require_engine(trainer: Trainer) -> None:
    """A `ValueError` if another engine runs than the one that was asked for: on CPUs accelerate falls back to DDP."""
    wanted = asked_for()
    if wanted == "FSDP" and not trainer.is_fsdp_enabled and trainer.args.world_size > 1:
        raise ValueError(
            "accelerate runs FSDP on GPUs only, and would run DDP here without saying so. Leave FSDP out of its "
            "config, or run on GPUs."
        )


def require_readable(checkpoint: Path, arguments: TrainingArguments) -> None:
    """A `ValueError` for a checkpoint of another engine, or of a number of processes that its engine is bound to."""
    ranks = len(list(checkpoint.glob("global_step*/*optim_states.pt")))  # none of stage 0
    traces = {"DEEPSPEED": "global_step*", "FSDP": "pytorch_model_fsdp*"}
    by = next((engine for engine, trace in traces.items() if any(checkpoint.glob(trace))), None)
    now = "DEEPSPEED" if arguments.deepspeed_plugin is not None else asked_for()
    if by != now:
        said = [NAMES[by], NAMES[now]]
        raise ValueError(
            f"{checkpoint} was written by {said[0]}, and this run has {said[1]}. Go on with {said[0]}, or start again "
            "with --overwrite."
        )
    if ranks and ranks != arguments.world_size:
        raise ValueError(
            f"{checkpoint} was written by DeepSpeed in {ranks} processes, and only {ranks} processes can read it, not "
            f"{arguments.world_size}. Runs on DDP and FSDP 2 go on with other numbers of processes."
        )


def shard_rotary(trainer: Trainer, network: nn.Module) -> None:
    """Make each rotary module an FSDP 2 unit of its own, before accelerate shards the rest.

    As part of a larger unit it would be cast to bfloat16 with it. Its parameters stay whole after its forward,
    because attention layers read them: frequencies of bands, scalars of heads.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin, mesh = trainer.accelerator.state.fsdp_plugin, trainer.accelerator.torch_device_mesh
    names = None if mesh is None else tuple(trainer.accelerator.parallelism_config.fsdp_dim_names)
    for rotary in extension(network).rotaries:
        if not any(parameter.requires_grad for parameter in rotary.parameters()):
            continue
        rotary.to(trainer.accelerator.device)  # FSDP moves parameters, and not what is computed from them
        fully_shard(
            rotary,
            mesh=None if mesh is None else mesh[names],
            reshard_after_forward=False,
            mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
            **({} if plugin.cpu_offload is None else {"offload_policy": plugin.cpu_offload}),
        )


def _outside(network: PreTrainedModel) -> list[str]:
    """Parameters that training on text does not reach, such as those of a vision tower: DDP has to look for them."""
    reached = {id(parameter) for parameter in text_model(network).parameters()}
    for module in (network.get_input_embeddings(), network.get_output_embeddings()):
        reached |= set() if module is None else {id(parameter) for parameter in module.parameters()}
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    ]
