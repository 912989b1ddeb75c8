"""`longwave demo`: the whole library on a small model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.options import Json, Overwrite


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for results and models.")
    ] = Path("longwave-demo"),
    overwrite: Overwrite = False,
    quick: Annotated[bool, typer.Option("--quick", help="A minute: checks the installation.")] = False,
    as_json: Json = False,
) -> None:
    """Extend a small Llama from 256 to 4,096 tokens and measure it, on CPU, without a download.

    Needs at most ten minutes on two cores. Interrupted, it takes up where it stopped when it is started
    again with the same folder.

    Example:

    - `longwave demo --output longwave-demo`
    """
    raise NotImplementedError
