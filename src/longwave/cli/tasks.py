"""`longwave tasks`: benchmark tasks, through lm-evaluation-harness or from local samples."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.cli import generating
from longwave.cli.evaluating import Device, Dtype, results_folder
from longwave.cli.generating import Method, To
from longwave.cli.options import Json, Model, Options, Overwrite, check_inputs
from longwave.cli.settings import with_settings
from longwave.evaluation.tasks.asked import TaskSettings


@with_settings(TaskSettings, group="Settings of tasks")
def tasks(
    model: Model,
    method: Method = None,
    option: Options = None,
    to: To = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for tasks.json; default tasks-MODEL.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    **settings: Any,
) -> None:
    """Score a model on benchmark tasks: RULER, LongBench, InfiniteBench, BABILong, ARC, ...

    --tasks runs tasks of lm-evaluation-harness (pip install 'longwave[eval]') with its prompts and metrics.
    --samples runs local files in the formats of LongBench, LongBench v2, LooGLE, BAMBOO, RULER and passkey, without a
    network. Prompts of these that are too long lose their middle. Writes tasks.json.

    Examples:

    longwave tasks out --tasks niah_single_1,niah_multikey_1 --lengths 4096,16384

    longwave tasks out --tasks "longbench_*" --truncate middle --limit 50

    longwave tasks my-model --method yarn --to 32768 --samples longbench/
    """
    asked = TaskSettings.create(**settings)
    asked.check()
    check_inputs(model)
    method = generating.chosen(method, option)

    from rich.console import Console

    from longwave.checkpoints.trained import trained_of
    from longwave.cli.options import print_json
    from longwave.evaluation.records import TRAINED
    from longwave.evaluation.results import TASKS, record, write
    from longwave.extensions.reach import original_length_of
    from longwave.files import check_output, make_folder
    from longwave.report.tables import tasks_table

    folder = check_output(results_folder(output, "tasks", model), overwrite=overwrite)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    original = original_length_of(loaded.model)
    status = Console(stderr=True).status("answering")
    with status if asked.samples is not None else nullcontext():  # lm-eval shows bars of its own
        found = asked.run(loaded, original, lambda name: status.update(f"answering {name}"))
    known = {TRAINED: trained_of(loaded.model).length}
    made = record(
        TASKS, model=loaded.about, settings=found["settings"], original_length=original,
        rows=[{**row, **known} for row in found["results"]],
        data=found.get("data"), seed=asked.drawn,
    )  # fmt: skip
    make_folder(folder)
    path = write(folder / "tasks.json", made, overwrite=overwrite)
    if as_json:
        print_json(made)
        return
    console = Console()
    console.print(tasks_table(made["rows"]))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
