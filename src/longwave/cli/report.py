"""`longwave report`: one HTML file from records, training runs and a model's frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.evaluating import check_methods, chosen_of
from longwave.cli.options import Options, check_inputs


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Records and metrics.jsonl, or folders to search for them."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Draw this model's frequencies and distances too."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="METHOD,...", help="For --model; default its own and none,linear,ntk,yarn."),
    ] = None,
    option: Options = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Title of the page.")] = "longwave report",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that exists.")] = False,
) -> None:
    """Write results as one HTML page: figures, tables with intervals, a summary, and what made each number.

    The page needs no other file and no network. Records of different protocols, texts or trained lengths come into
    separate sections. A damaged record is an error.

    Examples:

    longwave report perplexity-model/perplexity.json passkey-model/passkey.json

    longwave report results/ out/metrics.jsonl --model out --methods none,ntk,clex -o report.html
    """
    if methods is not None and model is None:
        raise ValueError("--methods chooses what is drawn for --model. Pass a model too.")
    if option and methods is None:
        raise ValueError("--option is for --methods. Pass them too.")
    check_methods(methods)
    if model is not None:
        check_inputs(model)

    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from longwave.extensions.spec import parse_spec
    from longwave.files import make_folder, write_text
    from longwave.report.html import page
    from longwave.report.sources import find_files, read_source, read_training
    from longwave.report.trajectories import Drawn, drawn_of_model

    specs = None if methods is None else chosen_of(methods, option)
    for spec in specs or ():
        parse_spec(spec)
    if output.suffix != ".html":
        raise ValueError(f"output {output} must end in .html.")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists. Choose another name or pass --overwrite.")
    files = find_files(paths or ())
    disable_progress_bar()
    drawn = Drawn() if model is None else drawn_of_model(model, specs)
    for name, why in drawn.refused.items():
        typer.echo(f"note: {name} is left out: {why}", err=True)
    text = page(
        [read_source(file) for file in files if file.suffix == ".json"],
        trainings=[read_training(file) for file in files if file.suffix == ".jsonl"],
        trajectories=drawn.trajectories,
        banded=drawn.banded,
        title=title,
    )
    make_folder(output.parent)
    write_text(output, text)
    Console().print(f"written: {output}", highlight=False, soft_wrap=True)
