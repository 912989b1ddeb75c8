"""`longwave compare`: several models and methods side by side, every cell measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.comparing import AskedOfSuite, Suite, Texts, named
from longwave.cli.options import check_inputs
from longwave.cli.settings import with_fields


@with_fields("asked", AskedOfSuite)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]MODEL...", help="Result folders or Hugging Face models; equal names are runs."),
    ],
    asked: AskedOfSuite,
    data: Texts = None,
    suite: Suite = "quick",
) -> None:
    """Measure several models and methods alike, in one table for each evaluation.

    A model runs under its own method, a plain one under the training-free ones, or all under --methods, where
    `own` stands for the former. Models of one NAME are runs of the same thing, trained with different seeds for
    example: their row is the mean, its interval covers runs and texts. Every cell (a model under a method in an
    evaluation) is kept under a hash of all it depends on: an interrupted comparison goes on where it was, more
    rows cost only themselves, and several processes may share an output folder. Writes JSON and PNG for each
    evaluation, and report.html.

    Examples:

    longwave compare my-model out --data held-out.txt --methods none,ntk,own -o comparison

    longwave compare clex=out-seed0 clex=out-seed1 ntk=out-ntk0 ntk=out-ntk1 --data held-out.txt --suite standard
    """
    check_inputs(*(named(model)[1] for model in models), data=data)

    from longwave.cli import comparing
    from longwave.evaluation.suites import read_suite

    steps = read_suite(suite)
    folder = comparing.open_folder(asked.output, "compare-" + "-".join(Path(model).name for model in models)[:60])
    candidates = comparing.candidates(models, asked.specs)
    comparing.measure(asked.comparison(candidates, steps, folder, data), asked)
