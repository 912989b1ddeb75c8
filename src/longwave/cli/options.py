"""Options that several commands share, so that one name always means one thing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.checkpoints.folder import check_model, resolve
from longwave.data.paths import check_data

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder that `longwave train` wrote, or a Hugging Face model."),
]
DATA_HELP = "A file, a folder or hub:NAME, see docs/data.md; repeatable."
Data = Annotated[
    list[Path],
    typer.Option("--data", metavar="PATH", help=DATA_HELP),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="Option of the method; repeatable. `longwave methods NAME` lists them."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


def check_inputs(*models: str | None, data: Iterable[Path] | None = None) -> None:
    """Refuse models and files that do not exist, before torch and transformers are imported: that takes seconds."""
    given = [model for model in models if model is not None]
    for model in given:
        check_model(model)
    check_data(data or ())

    for model in given:
        resolve(model).check()


def print_json(value: Any) -> None:
    """Print `value` as strict JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
