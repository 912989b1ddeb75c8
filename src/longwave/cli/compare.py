"""`longwave compare`: several models and methods side by side, every cell measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli import comparing
from longwave.cli.comparing import AskedOfSuite, Suite, Texts, named
from longwave.cli.options import check_inputs
from longwave.cli.settings import with_fields
from longwave.evaluation.alike import model_name
from longwave.evaluation.suites import read_suite


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

    A trained model runs under its own method, a plain model under the training-free methods. With --methods all
    models run under the methods given there; `own` is a model's own method. Models of one NAME are runs of the same
    thing, for example with different seeds. Their row is the mean, and its interval covers runs and texts.

    A cell is one model under one method in one evaluation. Finished cells are kept: an interrupted comparison goes on
    where it stopped, and another row costs only its own cells. Several processes may share an output folder. Writes
    JSON and PNG for each evaluation, and report.html.

    Examples:

    longwave compare my-model out --data held-out.txt --methods none,ntk,own -o comparison

    longwave compare clex=out-seed0 clex=out-seed1 ntk=out-ntk0 ntk=out-ntk1 --data held-out.txt --suite standard
    """
    steps = read_suite(suite)
    check_inputs(*(named(model)[1] for model in models), data=data)
    candidates = comparing.candidates(models, asked.specs)
    folder = asked.output or Path("compare-" + "-".join(map(model_name, models))[:60])
    comparing.measure(asked.comparison(candidates, steps, folder, data), asked)
