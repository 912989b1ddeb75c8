"""`longwave plot`: results drawn and tabled again, several of them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def plot(
    records: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RECORD...", help="A record such as perplexity.json, or the folder of one."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="PNG, PDF or SVG; without it only the table.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Title of the plot.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what cannot be compared: other protocols, texts, windows.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Draw results together: a line for each row, runs of equal names as mean and interval.

    NAME=RECORD renames the rows of a record, so that two models under one method are two lines; records without
    a name whose rows are called alike count as runs of the same thing. Records of different protocols, texts or
    windows are refused, for their numbers cannot be compared.

    Examples:

    longwave plot before=perplexity-model after=perplexity-out -o both.png

    longwave plot seed0/perplexity.json seed1/perplexity.json seed2/perplexity.json -o seeds.svg
    """
    from rich.console import Console

    from longwave.report.plots import save
    from longwave.report.views import view

    if output is not None and output.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"output {output} must end in .png, .pdf or .svg.")
    if output is not None and output.exists() and not overwrite:
        raise ValueError(f"{output} exists. Choose another name or pass --overwrite.")
    shown = view([_read(each) for each in records], mixed=force)
    console = Console()
    for table in shown.tables():
        console.print(table)
    if output is not None:
        notes = (shown.note, "not comparable" if force else "")
        save(shown.figure(title or shown.title, " · ".join(note for note in notes if note)), output)
        console.print(f"written: {output}", highlight=False, soft_wrap=True)


def _read(argument: str) -> dict[str, Any]:
    """A record by length, its rows renamed where a name is given."""
    from longwave.evaluation.records import read
    from longwave.report.sources import Source

    name, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        name, path = "", argument
    found = Source(file := _file(Path(path)), read(file))
    if not found.by_length:
        raise ValueError(f"{file} has no lengths to plot. `longwave report` shows records of tasks.")
    rows = found.record["rows"]
    if name:
        for row in rows:
            row["label"] = name if len(rows) == 1 else f"{name}: {row['label']}"
    return found.record


def _file(path: Path) -> Path:
    from longwave.evaluation.records import is_ours

    if not path.exists():
        raise ValueError(f"record {path} does not exist. Give a file such as perplexity.json, or its folder.")
    if path.is_file():
        return path
    inside = [file for file in sorted(path.glob("*.json")) if is_ours(file)]
    if len(inside) != 1:
        what = f"{', '.join(file.name for file in inside)}: name one" if inside else "no record"
        raise ValueError(f"folder {path} holds {what}.")
    return inside[0]
