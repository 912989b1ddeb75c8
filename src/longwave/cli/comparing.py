"""What `evaluate` and `compare` share: measure what is missing, then write and show every record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longwave.cli.evaluating import Asked
from longwave.cli.options import DATA_HELP
from longwave.evaluation.alike import model_name

if TYPE_CHECKING:
    from longwave.evaluation.candidates import Candidate
    from longwave.evaluation.cells import Cell
    from longwave.evaluation.comparison import Comparison

Suite = Annotated[
    str,
    typer.Option("--suite", metavar="NAME|FILE", help="What to measure: quick, standard, or a YAML file."),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="PATH", help=DATA_HELP),
]
Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for results; an earlier run in it goes on."),
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace tables that have other rows; cells stay.")]


@dataclass(frozen=True)
class AskedOfSuite(Asked):
    """The options of a command that runs a suite."""

    output: Folder = None
    overwrite: Replace = False


def named(argument: str) -> tuple[str, str]:
    """Name and path of `[NAME=]MODEL`; the name is empty if none is given."""
    name, separator, path = argument.partition("=")
    return ("", argument) if not separator or Path(argument).exists() else (name.strip(), path)


def candidates(models: list[str], methods: tuple[str, ...]) -> list[Candidate]:
    """A candidate for each `[NAME=]MODEL`. Without NAME its name is the folder's, with the parent's for equal ones."""
    from longwave.evaluation.candidates import Candidate

    found = [named(argument) for argument in models]
    ends = [model_name(path) for _, path in found]
    unnamed = {path for name, path in found if not name}
    if len(unnamed) != sum(not name for name, _ in found):
        raise ValueError("a model is given twice. Leave one out, or give both a name: NAME=MODEL.")
    return [
        Candidate(path, name or model_name(path, 2 if ends.count(end) > 1 else 1), methods)
        for (name, path), end in zip(found, ends, strict=True)
    ]


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison."""
    from longwave.evaluation.cells import FOLDER
    from longwave.files import check_output

    check_output(folder, overwrite=True)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FOLDER).is_dir():
        raise ValueError(f"output folder {folder} holds other files than a comparison. Choose another --output.")


def measure(comparison: Comparison, asked: Asked, *, model: str | None = None) -> None:
    """Compute the missing cells with a progress bar, then write and show the records of all cells.

    Arguments:
        model: the path of a single model. The page then shows its frequencies, too, and the course of its training if
            its folder has metrics.jsonl.
    """
    from filelock import FileLock
    from rich.console import Console

    from longwave.cli.options import print_json
    from longwave.cli.showing import Showing, show

    check_folder(comparison.folder)  # here: a default folder that is full must not hide what else is wrong
    _refuse_other_rows(comparison, asked.overwrite)
    compute(comparison)
    records = comparison.records()
    with FileLock(comparison.folder / ".tables.lock"):
        _refuse_other_rows(comparison, asked.overwrite)  # again: another process may have written its own meanwhile
        for name, record in records.items():
            show(record, comparison.folder, Showing(name, overwrite=True, name=name, quiet=asked.as_json))
        page = _report(comparison, model)
    if asked.as_json:
        print_json(records)
    else:
        Console().print(f"written: {page}", highlight=False, soft_wrap=True)


def compute(
    comparison: Comparison,
    name: Callable[[Cell], str] = attrgetter("title"),
    claim: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Compute the missing cells with a progress bar. A cell that another process finishes is shown, too.

    Arguments:
        name: (cell) -> its name in the progress.
        claim: a context that is entered after the planning and before the first cell.
    """
    from longwave.cli.progressing import progress
    from longwave.evaluation.records import quantity_of

    missing, total = len(comparison.missing()), len({cell.key for cell in comparison.cells})
    if done := total - missing:
        typer.echo(f"{done} of {total} cells were finished before", err=True)
    if not missing:
        return
    numbers, started = count(done + 1), list[str]()

    def start(cell: Cell) -> Callable[[int], None]:
        started.append(name(cell))
        return meter.start(name(cell))

    def tell(cell: Cell) -> None:
        found = comparison.store.read(cell)
        values = quantity_of(found).line(found["rows"][0]["lengths"])
        meter.finished(f"{name(cell)}: {values}", next(numbers), total)

    try:
        with progress(comparison.cost()) as meter, claim():
            comparison.run(start, tell)
    except KeyboardInterrupt:
        kept = total - len(comparison.missing())
        typer.echo(f"interrupted; the same command goes on, {kept} of {total} cells are kept", err=True)
        raise typer.Exit(130) from None
    except Exception:
        if started:
            kept = total - len(comparison.missing())
            goes_on = f"; {kept} of {total} cells are kept, and the same command goes on there" if kept else ""
            typer.echo(f"stopped at {started[-1]}{goes_on}", err=True)
        raise


def _report(comparison: Comparison, model: str | None) -> Path:
    """report.html beside the records."""
    from transformers.utils.logging import disable_progress_bar

    from longwave.files import write_text
    from longwave.layout import METRICS
    from longwave.report.html import page
    from longwave.report.sources import read_source, read_training
    from longwave.report.trajectories import Drawn, drawn_of_model

    disable_progress_bar()  # of transformers, which may not have been needed so far
    metrics = [] if model is None else [Path(model) / METRICS]
    drawn = Drawn() if model is None else drawn_of_model(model)
    text = page(
        [read_source(comparison.folder / f"{step.name}.json") for step in comparison.steps],
        trainings=[read_training(path) for path in metrics if path.is_file()],
        trajectories=drawn.trajectories,
        banded=drawn.banded,
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
                "--output, or pass --overwrite to replace the table. Finished cells stay."
            )
