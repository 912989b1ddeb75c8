"""Benchmark tasks: their settings, and how they are run. They have no lengths, and so are no `Evaluation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longwave.evaluation.lengths import check_spelling, parse_lengths
from longwave.evaluation.tasks.samples import sample_files
from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from longwave.models import Opened


@dataclass(frozen=True)
class TaskSettings(Settings):
    """Which tasks are run, and how."""

    whose: ClassVar[str] = "tasks"

    tasks: str | None = setting(None, "lm-eval's tasks, groups or YAML files; * for any text.", metavar="NAME,...")
    samples: str | None = setting(None, "Local samples instead: a .jsonl or a folder.", metavar="PATH")
    limit: int | None = setting(None, "Samples of each task; default all.", least=1)
    lengths: str | None = setting(None, "Of the prompts that RULER makes, in tokens.", metavar="N,...")
    max_length: int | None = setting(None, "Longest text; default the model's maximum.", least=1)
    truncate: str | None = setting(
        None,
        "What too long prompts lose: left, their start, by default; middle as in LongBench, always with --samples.",
        choices=("left", "middle"),
    )
    factor: float | None = setting(None, "One t for all requests; default each its own.", metavar="T")
    chat: bool = setting(False, "Put prompts into the tokenizer's chat template.")
    seed: int = setting(0, "Seed of every random draw.")

    def check(self) -> None:
        """Refuse what does not go together."""
        if (self.tasks is None) == (self.samples is None):
            raise ValueError("give --tasks NAME,... or --samples PATH, one of them.")
        if self.samples is not None and (self.factor is not None or self.chat or self.lengths is not None):
            raise ValueError("--factor, --chat and --lengths are for --tasks. Leave them out with --samples.")
        if self.samples is not None:
            if self.truncate == "left":
                raise ValueError(
                    "--samples takes the middle out of prompts that are too long, as LongBench does. "
                    "Leave out --truncate left."
                )
            sample_files(self.samples)
        check_spelling(self.lengths)

    @property
    def drawn(self) -> int | None:
        """The seed of the record; None for local samples, for which nothing is drawn."""
        return self.seed if self.samples is None else None

    def run(self, opened: Opened, original_length: int, told: Callable[[str], None]) -> dict[str, Any]:
        """Run the tasks.

        Arguments:
            told: called with the task's name after each local sample.

        Returns:
            `results` and `settings`, and for local samples `data`.
        """
        from longwave.evaluation.tasks.bridge import run_tasks
        from longwave.evaluation.tasks.local import run_local

        if self.samples is not None:
            return run_local(
                opened.model, opened.tokenizer, self.samples, max_length=self.max_length, limit=self.limit,
                progress=told,
            )  # fmt: skip
        return run_tasks(
            opened.model, opened.tokenizer, [name.strip() for name in (self.tasks or "").split(",") if name.strip()],
            limit=self.limit, max_length=self.max_length, factor=self.factor, truncate=self.truncate or "left",
            lengths=parse_lengths(self.lengths, original_length) if self.lengths else (), chat=self.chat,
            seed=self.seed,
        )  # fmt: skip
