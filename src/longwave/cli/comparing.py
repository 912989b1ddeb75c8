"""What `evaluate` and `compare` share: measure what is missing, then write and show every record."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longwave.evaluation.cells import Cell
    from longwave.evaluation.comparison import Candidate, Comparison

Suite = Annotated[
    str,
    typer.Option("--suite", metavar="NAME|FILE", help="What to measure: quick, standard, or a YAML file."),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", metavar="PATH", help="Text, jsonl, json, csv, parquet, arrow: a file or a folder; repeatable."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="For results; one of an earlier run is continued."),
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace tables of other rows; finished cells stay.")]


def split(methods: str | None) -> tuple[str, ...]:
    """Method specs of `--methods`, in order, repetitions dropped."""
    found = [spec.strip() for spec in (methods or "").split(",")]
    return tuple(dict.fromkeys(spec for spec in found if spec))


def named(argument: str) -> tuple[str, str]:
    """Name (empty if there is none) and path of `[NAME=]MODEL`."""
    name, separator, path = argument.partition("=")
    return ("", argument) if not separator or Path(argument).exists() else (name.strip(), path)


def candidates(models: list[str], methods: tuple[str, ...]) -> list[Candidate]:
    """`[NAME=]MODEL` each; without a name the folder's, with its parent where two are called alike."""
    from longwave.evaluation.comparison import Candidate

    found = [named(argument) for argument in models]
    ends = [Path(path).name for _, path in found]
    unnamed = {path for name, path in found if not name}
    if len(unnamed) != sum(not name for name, _ in found):
        raise ValueError("a model is given twice. Leave one out, or name both: NAME=MODEL.")
    return [
        Candidate(path, name or (str(Path(*Path(path).parts[-2:])) if ends.count(end) > 1 else end), methods)
        for (name, path), end in zip(found, ends, strict=True)
    ]


def open_folder(output: Path | None, default: str) -> Path:
    """A new folder, an empty one, or one with cells to go on with."""
    from longwave.evaluation.cells import FOLDER
    from longwave.files import check_output

    folder = output or Path(default)
    return check_output(folder, overwrite=(folder / FOLDER).is_dir())


def measure(comparison: Comparison, *, overwrite: bool, as_json: bool, model: str | None = None) -> None:
    """Compute the missing cells, progress shown; write and show the rest as if there had been no interruption.

    The page of a single `model` also shows its frequencies and, if it was trained here, how that went.
    """
    from filelock import FileLock
    from rich.console import Console

    from longwave.cli import evaluating
    from longwave.cli.options import print_json

    _refuse_other_rows(comparison, overwrite)
    missing, all_of_them = len(comparison.missing()), len({cell.key for cell in comparison.cells})
    if done := all_of_them - missing:
        note = f"{done} of {all_of_them} cells were finished before"
        Console(stderr=True).print(note, highlight=False)
    if missing:
        try:
            _run(comparison, done, all_of_them)
        except KeyboardInterrupt:
            kept = all_of_them - len(comparison.missing())
            typer.echo(f"interrupted; the same command goes on, {kept} of {all_of_them} cells are kept", err=True)
            raise typer.Exit(130) from None
    records = comparison.records()
    with FileLock(comparison.folder / ".tables.lock"):
        _refuse_other_rows(comparison, overwrite)  # again: another process may have written its own meanwhile
        for name, record in records.items():
            evaluating.write_and_show(
                record, comparison.folder, whose=name, overwrite=True, as_json=False, name=name, quiet=as_json
            )
        page = _report(comparison, model)
    if as_json:
        print_json(records)
    else:
        Console().print(f"written: {page}", highlight=False, soft_wrap=True)


def _run(comparison: Comparison, done: int, all_of_them: int) -> None:
    """Compute what is missing; cells that other processes finish meanwhile are told, too."""
    from longwave.cli.progressing import progress
    from longwave.evaluation.records import quantity_of

    numbers = count(done + 1)
    with progress(comparison.cost()) as meter:

        def tell(cell: Cell) -> None:
            found = comparison.store.read(cell)
            values = quantity_of(found).line(found["rows"][0]["lengths"])
            meter.finished(f"{cell.step}, {cell.label}: {values}", next(numbers), all_of_them)

        comparison.run(meter.start, tell)


def _report(comparison: Comparison, model: str | None) -> Path:
    """report.html beside the records."""
    from transformers.utils.logging import disable_progress_bar

    from longwave.files import write_text
    from longwave.report.html import page
    from longwave.report.sources import read_source, read_training
    from longwave.report.trajectories import trajectories_of_model

    disable_progress_bar()  # of transformers, which may not have been needed so far
    metrics = [] if model is None else [Path(model) / "metrics.jsonl"]
    text = page(
        [read_source(comparison.folder / f"{step.name}.json") for step in comparison.steps],
        trainings=[read_training(path) for path in metrics if path.is_file()],
        trajectories=None if model is None else trajectories_of_model(model),
        title=comparison.folder.resolve().name,
    )
    path = comparison.folder / "report.html"
    write_text(path, text)
    return path


def _refuse_other_rows(comparison: Comparison, overwrite: bool) -> None:
    """A table in the folder may gain rows, but none may be lost."""
    from longwave.evaluation.records import read

    keys = {cell.key for cell in comparison.cells}
    for step in comparison.steps:
        path = comparison.folder / f"{step.name}.json"
        if not path.exists() or overwrite:
            continue
        found = read(path)
        rows = zip(found.get("cells", ()), found["rows"], strict=False)
        lost = [row["label"] for key, row in rows if key not in keys] if "cells" in found else ["another command's"]
        if lost:
            raise ValueError(
                f"{path} has rows that this command does not measure, or not alike ({', '.join(lost)}). Choose another "
                "--output, or pass --overwrite to replace the table; cells stay."
            )
