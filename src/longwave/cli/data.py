"""`longwave data`: what data hold, before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longwave.cli.options import Json, check_inputs, print_json
from longwave.data.paths import split_share

Action = Annotated[Literal["inspect"], typer.Argument(metavar="inspect", help="Read the data and tell what they hold.")]
Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH[@SHARE]...", help="Files, folders, hub:NAME; with a share if mixed.")
]
Tokenizer = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Count in the tokens of this model, not in characters.")
]
Length = Annotated[
    int | None,
    typer.Option(
        "--train-length",
        metavar="N",
        min=2,
        help="What training with windows of N tokens would use. Needs --model.",
    ),
]
Column = Annotated[str, typer.Option("--text-column", metavar="NAME", help="Column or field that holds the texts.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data with a broken line instead of counting it.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the lengths: a png, pdf or svg.")]


def data(
    action: Action,
    paths: Paths,
    model: Tokenizer = None,
    train_length: Length = None,
    text_column: Column = "text",
    strict: Strict = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Tell what data hold: documents, their lengths, tokens, shares, and what training at a length would use.

    The texts and tokens are kept in the cache of `datasets`. Training on the same data finds them there.

    Examples:

    longwave data inspect books/

    longwave data inspect books/@0.7 code.jsonl.gz@0.3 --model MODEL --train-length 16384

    longwave data inspect hub:NAME:SPLIT --model MODEL --text-column content --plot lengths.png
    """
    if train_length is not None and model is None:
        raise ValueError("train length is in tokens: pass --model, whose tokenizer counts them.")
    check_inputs(model, data=[Path(split_share(path)[0]) for path in paths])

    import sys

    from longwave.checkpoints.folder import resolve
    from longwave.checkpoints.tokenizer import load_tokenizer
    from longwave.data.inspection import inspect
    from longwave.data.kinds import Parsing
    from longwave.report.lengths import draw

    tokenizer = None if model is None else load_tokenizer(resolve(model))
    shown = not as_json and sys.stderr.isatty()
    found = inspect(paths, tokenizer, Parsing(text_column, strict), progress=shown)
    sources, unit = [each.to_json(train_length) for each in found], found[0].unit
    if plot is not None:
        draw(sources, unit, train_length, plot)
    if as_json:
        print_json({"unit": unit, "sources": sources})
    else:
        _show(sources, unit)


def _show(sources: list[dict[str, Any]], unit: str) -> None:
    """A table of the sources, and how long the documents of each are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from longwave.report.lengths import bars

    console = Console(highlight=False)
    table = Table("source", "share", "documents", unit, "median", "p90", "longest", box=box.SIMPLE)
    for each in sources:
        lengths = each["length"]
        numbers = (each["documents"], each[unit], lengths["median"], lengths["p90"], lengths["longest"])
        table.add_row(each["source"], f"{100 * each['share']:.3g} %", *(f"{number:,.0f}" for number in numbers))
    console.print(table)
    for each in sources:
        if each["empty"] or each["broken_lines"]:
            left_out = f"{each['empty']:,} empty documents and {each['broken_lines']:,} broken lines"
            console.print(f"{each['source']}: left out {left_out}", soft_wrap=True)
    for each in sources:
        table = Table(f"{unit} from", "documents", f"share of the {unit}", box=box.SIMPLE, title=each["source"])
        for row in bars(each, unit):
            table.add_row(*row)
        console.print(table)
        if "training" in each:
            use = each["training"]
            console.print(
                f"At train length {use['train_length']:,}: {use['windows']:,} windows, {use['dropped']:,} tokens "
                f"dropped. {100 * use['documents_at_least_as_long']:.1f} % of the documents are at least that long. "
                f"They hold {100 * use['tokens_in_them']:.1f} % of the tokens.",
                soft_wrap=True,
            )
