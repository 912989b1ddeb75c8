"""Run a model on benchmark samples that lie in local files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longwave import files as io
from longwave.data.prompts import check_ids, prompt_ids
from longwave.evaluation.loss import evaluating
from longwave.evaluation.tasks.common import known, steering
from longwave.evaluation.tasks.metrics import TASKS, Task
from longwave.evaluation.tasks.samples import Sample, read_samples, sample_files
from longwave.evaluation.tasks.scores import Score
from longwave.evaluation.tasks.truncation import truncate_middle
from longwave.extensions.decoding import Decoding, new_tokens
from longwave.extensions.reach import max_length_of, reach_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_local(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | str,
    *,
    tasks: Sequence[str] | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Greedy answers to the samples of a file or folder, each scored as its benchmark does.

    One prompt at a time through the stock `generate`, so that t is what the policy gives it. A prompt that leaves no
    room for its answer within `max_length` loses its middle (`truncate_middle`). Prompts are given as they are,
    without a chat template.

    Arguments:
        model: extended or not; put in eval mode for the while.
        path: a `.jsonl` file or a folder of them, see `read_samples`.
        tasks: names in `TASKS`; default all that the files hold.
        max_length: longest text in tokens, prompt and answer together; default the model's maximum.
        limit: samples of each task, default all.
        progress: called with the task's name after each sample.

    Returns:
        JSON-able: `results`, a row for each task with `task`, `metric`, `value` (mean over samples, 0 to 1), `stderr`
        (None for one sample), `samples`, `values`, `outputs`, `prompt_tokens`, `truncated` (how many prompts were),
        `new_tokens` (of an answer at most); `settings`, what they depend on; `data`, SHA-256 by file.

    Raises:
        ValueError: for unknown tasks, files that cannot be read, a `max_length` beyond the model's or with no room
            for prompts, or a package that a metric needs.
    """
    found: dict[str, list[Sample]] = {}
    for sample in read_samples(path):
        found.setdefault(sample.task, []).append(sample)
    names = list(found) if tasks is None else known(tasks, list(TASKS))
    if absent := [name for name in names if name not in found]:
        raise ValueError(f"{path} has no samples of {absent[0]}; it has {', '.join(found)}.")
    if not names:
        raise ValueError(f"no tasks given. Name one of those that {path} has: {', '.join(found)}.")
    known(names, list(TASKS))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    accepted = max_length_of(model)
    longest = max_length if max_length is not None else reach_of(model)
    if accepted is not None and longest > accepted:
        raise ValueError(f"max_length {longest} is beyond the model's maximum of {accepted} tokens. Lower it.")
    if (most := max(TASKS[name].new_tokens for name in names)) >= longest:
        raise ValueError(f"max_length {longest} leaves no room for a prompt beside {most} tokens of answer. Raise it.")
    scores = {name: TASKS[name].prepare() for name in names}  # what is missing is missing before hours of work
    with evaluating(model):
        rows = [
            _run(model, tokenizer, name, TASKS[name], scores[name], found[name][:limit], longest, progress)
            for name in names
        ]
    settings = {
        "extension": steering(model),
        "max_length": longest,
        "limit": limit,
        "truncation": "middle",
        "decoding": "greedy",
    }
    return {"results": rows, "settings": settings, "data": {str(f): io.sha256(f) for f in sample_files(path)}}


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    task: Task,
    score: Score,
    samples: list[Sample],
    max_length: int,
    progress: Callable[[str], None] | None,
) -> dict[str, Any]:
    room = max_length - task.new_tokens
    encode = partial(prompt_ids, tokenizer)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    greedy = Decoding().arguments(tokenizer)
    values, outputs, lengths, truncated = [], [], [], 0
    for sample in samples:
        prompt = truncate_middle(sample.prompt, encode, decode, room)
        truncated += prompt != sample.prompt
        ids = torch.tensor([encode(prompt)], device=model.device)
        check_ids(ids, model, tokenizer)
        answer = decode(new_tokens(model, ids, task.new_tokens, greedy).tolist())
        outputs.append(answer)
        lengths.append(ids.shape[1])
        values.append(score(answer.lstrip("\n").split("\n")[0] if task.first_line else answer, sample))
        if progress is not None:
            progress(name)
    return {
        "task": name,
        "metric": task.metric,
        "value": statistics.fmean(values),
        "stderr": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        "samples": len(values),
        "new_tokens": task.new_tokens,
        "truncated": truncated,
        "prompt_tokens": lengths,
        "values": values,
        "outputs": outputs,
    }
