"""`longwave plot`: results drawn and tabled again, several of them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.comparing import named


def plot(
    records: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RECORD...", help="A record such as perplexity.json, or the folder of one."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="PNG, PDF or SVG; without it only the table.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Title of the plot.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw records together that cannot be compared.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Draw results together: a line for each row; rows of one name are runs, drawn as their mean and interval.

    NAME=RECORD renames the rows of a record, so that two models under one method are two lines. Without a NAME, rows
    of one name in several records count as runs of the same thing. Records of different protocols, texts or windows
    are refused: their numbers cannot be compared.

    Examples:

    longwave plot before=perplexity-model after=perplexity-out -o both.png

    longwave plot seed0/perplexity.json seed1/perplexity.json seed2/perplexity.json -o seeds.svg
    """
    from rich.console import Console

    from longwave.files import make_folder
    from longwave.report.plots import save
    from longwave.report.sources import read_by_length
    from longwave.report.views import view

    if output is not None and output.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"output {output} must end in .png, .pdf or .svg.")
    if output is not None and output.exists() and not overwrite:
        raise ValueError(f"{output} exists. Choose another name or pass --overwrite.")
    shown = view([read_by_length(Path(path), name) for name, path in map(named, records)], mixed=force)
    console = Console()
    for table in shown.tables():
        console.print(table)
    if shown.legend:
        console.print(shown.legend, highlight=False, soft_wrap=True)
    if output is not None:
        make_folder(output.parent)
        notes = (shown.note, "not comparable" if force else "")
        save(shown.figure(title or shown.title, " · ".join(note for note in notes if note)), output)
        console.print(f"written: {output}", highlight=False, soft_wrap=True)
