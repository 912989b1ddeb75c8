"""`longwave tasks`: benchmark tasks, through lm-evaluation-harness or from local samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Method, To
from longwave.cli.options import Json, Model, Overwrite, Seed, check_inputs


def tasks(
    model: Model,
    names: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,...", help="lm-eval's tasks, groups or YAML files; * for any text."),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="PATH", help="Local samples instead: a .jsonl or a folder.")
    ] = None,
    method: Method = None,
    to: To = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Samples of each task; default all.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", metavar="N,...", help="Of the prompts that RULER makes, in tokens.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", help="Longest text; default the model's maximum.")
    ] = None,
    truncate: Annotated[
        Literal["left", "middle"],
        typer.Option("--truncate", help="What too long prompts lose: left as in lm-eval, middle as in LongBench."),
    ] = "left",
    factor: Annotated[
        float | None, typer.Option("--factor", metavar="T", help="One t for all requests; default each its own.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for tasks.json; default tasks-MODEL.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Score a model on benchmark tasks: RULER, LongBench, InfiniteBench, BABILong, ARC, ...

    --tasks runs lm-evaluation-harness (pip install 'longwave[eval]'), its prompts and metrics. --samples runs local
    files in the formats of LongBench, LongBench v2, LooGLE, BAMBOO, RULER and passkey, without a network; prompts
    that are too long lose their middle. Writes tasks.json.

    Examples:

    longwave tasks out --tasks niah_single_1,niah_multikey_1 --lengths 4096,16384

    longwave tasks out --tasks "longbench_*" --truncate middle --limit 50

    longwave tasks my-model --method yarn --to 32768 --samples longbench/
    """
    check_inputs(model)

    from rich.console import Console

    from longwave.cli import evaluating, generating
    from longwave.cli.options import print_json
    from longwave.evaluation.lengths import parse_lengths
    from longwave.evaluation.results import TASKS, record, write
    from longwave.evaluation.tasks.bridge import run_tasks
    from longwave.evaluation.tasks.local import run_local
    from longwave.extensions.reach import original_length_of
    from longwave.report.tables import tasks_table

    if (names is None) == (samples is None):
        raise ValueError("give --tasks NAME,... or --samples PATH, one of them.")
    if samples is not None and (factor is not None or chat or lengths is not None):
        raise ValueError("--factor, --chat and --lengths are for --tasks. Leave them out with --samples.")
    folder = evaluating.results_folder(output, "tasks", model, overwrite)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    original = original_length_of(loaded.model)
    found: dict[str, Any]
    if samples is not None:
        with Console(stderr=True).status("answering") as status:
            found = run_local(
                loaded.model, loaded.tokenizer, samples, max_length=max_length, limit=limit,
                progress=lambda name: status.update(f"answering {name}"),
            )  # fmt: skip
    else:
        wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
        found = run_tasks(
            loaded.model, loaded.tokenizer, wanted, limit=limit, max_length=max_length, factor=factor,
            lengths=parse_lengths(lengths, original) if lengths else (), truncate=truncate, chat=chat, seed=seed,
        )  # fmt: skip
    made = record(
        TASKS, model=loaded.about, settings=found["settings"], original_length=original, rows=found["results"],
        data=found.get("data"), seed=seed if samples is None else None,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / "tasks.json", made, overwrite=overwrite)
    if as_json:
        print_json(made)
        return
    console = Console()
    console.print(tasks_table(made["rows"]))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
