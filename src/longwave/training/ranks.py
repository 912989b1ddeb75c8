"""How processes share the micro-batches of an optimizer step, and the rows of a micro-batch.

A run may go on with other numbers of both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from longwave.training.config import TrainConfig
from longwave.training.draw import VERSION

USES, SIZE = "ACCELERATE_USE_PARALLELISM_CONFIG", "PARALLELISM_CONFIG_SP_SIZE"  # that `accelerate launch` sets


def world_size() -> int:
    """Number of processes that torchrun, or a launcher like it, has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def shards_asked(given: int) -> int:
    """How many processes share a row: as the setting has it, or the environment that `accelerate launch` sets.

    Raises:
        ValueError: where the two differ, where the processes cannot form such groups, and without DeepSpeed.
    """
    asked, processes = int(os.environ.get(SIZE, 1)), world_size()
    if given > 1 and asked not in (1, given):
        raise ValueError(f"sequence_parallel is {given}, and {SIZE} is {asked}. Leave one of the two out.")
    count = max(given, asked)
    if count == 1:
        return 1
    if int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", 1)) > 1:
        raise ValueError("sequence_parallel does not go with tensor parallelism. Set parallelism_config_tp_size to 1.")
    if int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", 1)) > 1:
        raise ValueError(
            "sequence_parallel does not go with replicas of sharded weights. Set "
            "parallelism_config_dp_replicate_size to 1."
        )
    if processes % count:
        raise ValueError(
            f"sequence_parallel {count} needs a multiple of {count} processes, and this run has {processes}. Start it "
            f"with torchrun --nproc-per-node {count}."
        )
    if find_spec("deepspeed") is None:
        raise ValueError("sequence_parallel needs DeepSpeed: pip install 'longwave[deepspeed]'.")
    return count


@dataclass(frozen=True)
class Ranks:
    """The layout of a step: 1 process with 4 micro-batches, 2 with 2, and 4 with 1 are the same run.

    Arguments:
        processes: number of processes.
        accumulation: micro-batches of each process.
        begun: `accumulation` of the run when it was begun, which its record keeps.
        shards: processes that share the rows of a micro-batch.
    """

    processes: int
    accumulation: int
    begun: int
    shards: int = 1

    @property
    def per_step(self) -> int:
        """Micro-batches of an optimizer step, in all processes together."""
        return self.processes // self.shards * self.accumulation

    @property
    def record(self) -> dict[str, int]:
        """What training.json has of it."""
        return {"world_size": self.processes, "micro_batches": self.per_step, "draws": VERSION}

    @classmethod
    def of(cls, config: TrainConfig) -> Ranks:
        """Of a new run."""
        return cls(world_size(), config.accumulation, config.accumulation, config.sequence_parallel)

    @classmethod
    def going_on(cls, config: TrainConfig, earlier: Mapping[str, Any]) -> Ranks:
        """Of a run that goes on: its steps keep their micro-batches, whatever the number of processes.

        Arguments:
            earlier: the record of the run.

        Raises:
            ValueError: where the processes cannot share the micro-batches of a step, where `accumulation` asks for
                other steps, and for a run of an older version whose draws were other ones.
        """
        shards, begun = config.sequence_parallel, int(earlier["config"].get("accumulation", 1))
        processes, alike = world_size(), world_size() // shards
        per_step = int(earlier.get("micro_batches", begun * earlier.get("world_size", 1)))
        if earlier.get("draws", 1) != VERSION and per_step > 1:
            raise ValueError(
                f"the run was begun by another version of longwave, which drew other positions for the {per_step} "
                "micro-batches of a step. Go on with that version, or start again with --overwrite."
            )
        if per_step % alike:
            fitting = ", ".join(str(count * shards) for count in range(1, per_step + 1) if per_step % count == 0)
            raise ValueError(
                f"a step of this run has {per_step} micro-batches, which {processes} processes cannot share evenly. "
                f"Go on with one of these numbers of processes: {fitting}."
            )
        accumulation = per_step // alike
        if config.accumulation not in (begun, accumulation):
            raise ValueError(
                f"--resume goes on with the same run, but accumulation {begun} -> {config.accumulation}. A step has "
                f"{per_step} micro-batches: with {processes} processes leave accumulation at {begun}, or pass "
                f"{accumulation}."
            )
        return cls(processes, accumulation, begun, shards)
