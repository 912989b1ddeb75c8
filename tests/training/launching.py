"""Runs of the command line in several processes, for tests and for runs/engines.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "engines"
# What `accelerate launch --config_file recipes/engines/fsdp2.yaml` puts into the environment.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_OFFLOAD_PARAMS": "false",
}  # fmt: skip
ENGINES = ("ddp", "fsdp2", "zero2", "zero3")


@dataclass(frozen=True)
class Launch:
    """A run on an engine.

    Arguments:
        engine: one of ENGINES, or `one` for a process without torchrun.
        processes: number of processes; their accumulation makes 2 micro-batches of each step.
        sharing: how many of them share each row.
        by_environment: whether they are told so as `accelerate launch` tells it.
        autocast: whether it runs in bfloat16.
        watched: the file that `on_cpu.py` writes.
    """

    engine: str
    processes: int = 2
    sharing: int = 1
    by_environment: bool = False
    autocast: bool = False
    watched: Path | None = None
    more: tuple[str, ...] = field(default=())

    def command(self, model: Path, book: Path, output: Path) -> list[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        # fmt: off
        line = [
            sys.executable, *(torchrun if self.engine != "one" else []), str(Path(__file__).with_name("on_cpu.py")),
            "train", str(model), "--data", str(book), "--output", str(output), "--train-length", "48",
            "--max-factor", "8", "--batch-size", "2", "--lr", "1e-3", "--method", "clex", "--accumulation",
            str(2 * self.sharing // self.processes), *self.more,
        ]
        # fmt: on
        if self.sharing > 1 and not self.by_environment:
            line += ["--sequence-parallel", str(self.sharing)]
        if self.autocast and not self.engine.startswith("zero"):
            line += ["--precision", "bf16"]
        return line + (["--deepspeed", str(self._config(output))] if self.engine.startswith("zero") else [])

    def _config(self, output: Path) -> Path:
        """The recipe; without its autocast where the run is in float32."""
        found: dict[str, Any] = json.loads((RECIPES / f"{self.engine}.json").read_text("utf-8"))
        if not self.autocast:
            del found["torch_autocast"]
        path = output.parent / f"{self.engine}{'-bf16' if self.autocast else ''}.json"
        path.write_text(json.dumps(found), "utf-8")
        return path

    @property
    def environment(self) -> dict[str, str]:
        watched = {} if self.watched is None else {"LONGWAVE_WATCH": str(self.watched)}
        asked = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_SP_SIZE": str(self.sharing)}
        own = (FSDP2 if self.engine == "fsdp2" else {}) | (asked if self.by_environment else {})
        return os.environ | {"OMP_NUM_THREADS": "1"} | watched | own

    def run(self, model: Path, book: Path, output: Path) -> Path:
        """Run to the end; raises with what was said where the run fails or hangs."""
        done = subprocess.run(
            self.command(model, book, output), capture_output=True, text=True, env=self.environment, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return output
