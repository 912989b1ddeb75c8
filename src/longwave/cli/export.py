"""`longwave export`: a folder or file that serving engines load without longwave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.cli.options import Json, Model, Output, Overwrite, check_inputs, print_json
from longwave.cli.settings import with_settings
from longwave.exporters import EXPORTERS
from longwave.exporters.settings import ExportSettings
from longwave.files import check_output
from longwave.settings import parse_pairs


@with_settings(ExportSettings, as_text=("to",))
def export(
    model: Model,
    output: Output,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE", help="A perplexity.json for the model card; repeatable."),
    ] = None,
    length: Annotated[int | None, typer.Option("--length", hidden=True)] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Freeze a model at one length factor, for engines that know nothing of longwave.

    At one t every method is a vector of factors for the frequencies, which serving engines can read. The folder
    appears when it is complete, with a model card. Weights are streamed from file to file.

    Examples:

    longwave export out --factor 8 --output out-8x

    longwave export out --to 32768 --target gguf --quantize q8_0 --verify --output out-gguf

    longwave export MODEL --method yarn --factor 4 --output yarn-4x

    longwave export out --profiles 1,2,4,8,16 --output out-serve
    """
    settings["to"] = tokens(settings["to"], length)
    settings["options"] = parse_pairs(settings.get("options") or ())
    asked = ExportSettings.create(**settings)
    EXPORTERS[asked.target].quantization(asked.quantize)
    check_inputs(model)
    check_output(output, overwrite=overwrite)

    from rich.console import Console
    from transformers.utils import logging

    from longwave.exporters.run import export as run

    logging.disable_progress_bar()
    console = Console(stderr=True, highlight=False)
    with console.status("reading") as status:
        done = run(model, output, results=results or (), overwrite=overwrite, tell=status.update, **asked.as_dict())
    if as_json:
        print_json(done.to_json())
        return
    snapshot, size = done.snapshot, sum(done.files.values())
    shown = ", ".join(f"{t:g}" for t in done.profiles or (snapshot.factor,))
    scaling = "" if done.profiles else f", attention scaling {snapshot.attention_scaling:.4g}"
    typer.echo(
        f"{done.folder}: {done.target}, {size / 1e6:,.1f} MB, t {shown}, {snapshot.max_length:,} tokens{scaling}"
    )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if done.agreement is not None:
        typer.echo(f"verified: {done.agreement}")


def tokens(to: str | None, length: int | None) -> int | None:
    """The number of tokens from `--to`, or from its old name `--length`.

    Raises:
        ValueError: for a format, which `--to` was once, and for anything else that is no number.
    """
    if length is not None:
        if to is not None:
            raise ValueError("--length is the old name of --to. Give --to alone.")
        typer.echo(f"note: --length is now --to, as in the other commands: --to {length}.", err=True)
        return length
    if to is None:
        return None
    if to.lower() in EXPORTERS:
        raise ValueError(f"--to is a number of tokens now. Write --target {to.lower()} for the format.")
    try:
        return int(to)
    except ValueError:
        raise ValueError(f"--to must be a whole number of tokens, got {to!r}. A format is a --target.") from None
