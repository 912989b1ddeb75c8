"""The machine that a run is meant for: how many devices, how large, and what divides the model among them.

The help of `longwave train` is made from this file: no torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from longwave.settings import Settings, setting

GIB = 2**30
UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
ENGINES = ("ddp", "fsdp2", "zero2", "zero3")


@dataclass(frozen=True)
class Machine(Settings):
    """What `--dry-run` plans for. A real run takes the machine that it finds.

    Raises:
        ValueError: naming the setting, what it got and what it allows.
    """

    noun: ClassVar[str] = "setting of the machine"

    devices: int | None = setting(
        None, "Devices, a process each, that --dry-run plans for; those of this run.", least=1
    )
    device_memory: str | None = setting(
        None, "Memory of each device that --dry-run plans for: 24GB; that of this machine.", metavar="SIZE"
    )
    engine: str | None = setting(
        None, "What divides the model among devices, for --dry-run: ddp copies it.", choices=ENGINES
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device_memory is not None:
            memory_of(self.device_memory)

    @property
    def memory(self) -> int | None:
        """Bytes of each device; None where nothing was said."""
        return None if self.device_memory is None else memory_of(self.device_memory)


def memory_of(text: str) -> int:
    """Bytes of `24GB` or `24GiB`: both are 24·2^30, as on the box of a graphics card."""
    found = re.fullmatch(r"([\d.]+)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    try:
        size = 0 if found is None else int(float(found[1]) * UNITS[found[2].upper()])
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f"device memory must be a size such as 24GB, got {text!r}.")
    return size
