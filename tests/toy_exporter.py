"""An export target as a newcomer adds it: one class and one line. As a script, it is `longwave` with that target."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longwave.exporters import EXPORTERS, Answer, Exporter, Plan
from longwave.exporters.hf.engine import run_transformers
from longwave.exporters.hf.plan import plan_folder
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

INNER = "inner"


@dataclass(frozen=True, eq=False)
class BoxPlan(Plan):
    content: Plan

    def write(self, folder: Path) -> None:
        (folder / INNER).mkdir()
        self.content.write(folder / INNER)


class Box(Exporter):
    """A folder within a folder, which transformers reads."""

    name = "toy"
    summary = "a folder in a box"
    library = "box-library"
    quantizations = ("whole", "split")

    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        content = plan_folder(source, snapshot)
        return BoxPlan(["Open the box."], content.size, content.tolerance, content)

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        return f"open {folder}/{INNER}"

    def engine(self) -> str:
        return "box 1.0"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        return run_transformers(folder / INNER, prompts, new_tokens)


EXPORTERS["toy"] = Box()

if __name__ == "__main__":
    from longwave.cli.main import main

    sys.exit(main())
