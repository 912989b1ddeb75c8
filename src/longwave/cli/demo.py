"""`longwave demo`: the whole library on a small model, in minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.options import Json, print_json


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for results and models.")
    ] = Path("longwave-demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty; start a demo there over.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps and windows: checks the installation.")] = False,
    as_json: Json = False,
) -> None:
    """Extend a small Llama from 256 to 4,096 tokens and measure it, on CPU, without a download.

    Needs at most ten minutes on two cores. Started again with the same folder, it goes on where it stopped.

    Example:

    - `longwave demo --output longwave-demo`
    """
    if output.is_file():  # before seconds of imports
        raise ValueError(f"output {output} is a file. Choose a folder.")
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from longwave.demo.plan import QUICK, DemoSettings
    from longwave.demo.run import run_demo
    from longwave.demo.summary import numbers, show

    logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:  # torch counts physical cores, and would leave one of two idle
        torch.set_num_threads(min(_cores(), 8))
    console = Console(stderr=as_json)
    try:
        result = run_demo(output, QUICK if quick else DemoSettings(), overwrite=overwrite, console=console)
    except KeyboardInterrupt:
        console.print("\ninterrupted: finished steps are kept, start again to go on")
        raise
    show(result, output, console)
    if as_json:
        print_json(numbers(result))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
