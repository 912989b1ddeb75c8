"""Run tasks of lm-eval (RULER, LongBench, ARC, ...) from Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.errors import install
from longwave.evaluation.tasks.common import known, steering
from longwave.extensions.handle import find_extension

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 1,
    max_length: int | None = None,
    lengths: Sequence[int] = (),
    factor: float | None = None,
    truncate: str = "left",
    chat: bool = False,
    include: Path | str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of tasks by lm-evaluation-harness, its prompts and metrics, every request at a t of its own length.

    Arguments:
        model: extended or not. It stays in eval mode; everything else is as before.
        tasks: names of tasks, groups or tags, `*` stands for any text; or a task's YAML file.
        limit: documents of each task, default all.
        shots: examples in the prompt, default the task's.
        max_length: longest text in tokens, default the model's maximum; prompts beyond it are cut.
        lengths: of the prompts that RULER's tasks make, in tokens; default RULER's, 4096 alone.
        factor: t of every request instead, see `LongwaveLM`.
        truncate: `left` as in lm-eval, or `middle` as in LongBench, for prompts of generation.
        chat: put prompts into the tokenizer's chat template.
        include: folder with further tasks.
        seed: of the examples in prompts, of sampling, and of what tasks draw.

    Returns:
        JSON-able: `results`, a row for each task and metric with `task`, `metric`, `filter` (what was done to the
        output first), `value`, `stderr` (None where lm-eval has none), `version` of the task, `samples`, `shots`,
        `higher_is_better` and `values` (for each document, None where the metric has no numbers of them);
        `groups`, the same for groups; `settings`, what all of them depend on.

    Raises:
        ValueError: without lm-eval or what a task needs beside it, for an unknown task, or settings that do not fit
            the model.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from longwave.evaluation.harness import LongwaveLM
    except ImportError as error:
        raise ValueError(f"tasks are run by lm-eval ({error}). Run: {install('eval')}.") from None
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    metadata: dict[str, Any] = {"tokenizer": tokenizer.name_or_path}
    if lengths:
        metadata["max_seq_lengths"] = list(lengths)
    files = [name for name in tasks if name.endswith((".yaml", ".yml")) and Path(name).is_file()]
    named = [name for name in tasks if name not in files]
    # lm-eval's own tasks are thousands of files, read only where some of them may be meant.
    manager = TaskManager(
        include_path=None if include is None else str(include), include_defaults=bool(named), metadata=metadata
    )
    names = known(named, manager.all_tasks) + files
    if not names:
        raise ValueError("no tasks given. Name one, for example longbench_trec or niah_single_1.")
    handle = find_extension(model)
    with nullcontext() if handle is None else handle.dial.held():
        lm = LongwaveLM(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            factor=factor,
            truncate=truncate,
        )
        if lengths and max(lengths) > lm.max_length:
            raise ValueError(f"length {max(lengths)} is beyond the maximum of {lm.max_length} tokens. Lower it.")
        try:
            found = lm_eval.simple_evaluate(
                lm,
                tasks=names,
                task_manager=manager,
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except ImportError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"a task lacks a package ({reason}). Run: {install('eval')}.") from None
        settings = {
            "extension": steering(model),
            "harness": lm_eval.__version__,
            "limit": limit,
            "batch_size": batch_size,
            "max_length": lm.max_length,
            "lengths": list(lengths) or None,
            "truncation": truncate,
            "chat": chat,
            "seed": seed,
        }
    assert found is not None  # None is for the other processes of a distributed run
    return {
        "results": _rows(found, found["results"]),
        "groups": _rows(found, found.get("groups", {})),
        "settings": settings,
    }


def _rows(found: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            documents = found.get("samples", {}).get(task, [])
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": name,
                    "value": _number(value),
                    "stderr": _number(values.get(f"{metric}_stderr,{name}")),
                    "version": found.get("versions", {}).get(task),
                    "samples": found.get("n-samples", {}).get(task, {}).get("effective"),
                    "shots": found.get("n-shot", {}).get(task),
                    "higher_is_better": found.get("higher_is_better", {}).get(task, {}).get(metric),
                    "values": _values(documents, metric, name),
                }
            )
    return rows


def _values(documents: Sequence[Mapping[str, Any]], metric: str, name: str) -> list[float] | None:
    """A metric of every document, in their order."""
    rows = sorted((row for row in documents if row["filter"] == name), key=lambda row: int(row["doc_id"]))
    numbers = [_number(row.get(metric)) for row in rows]
    return None if not numbers or None in numbers else [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    """A finite number, or None: lm-eval writes "N/A", NaN and lists for what it has not."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
