"""`longwave compare`: several models and methods side by side, every cell measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.comparing import Folder, Replace, Suite, Texts, named
from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods
from longwave.cli.options import Json, check_inputs


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]MODEL...", help="Result folders or Hugging Face models; equal names are runs."),
    ],
    data: Texts = None,
    suite: Suite = "quick",
    lengths: Lengths = None,
    methods: Methods = None,
    output: Folder = None,
    overwrite: Replace = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    tokens_per_batch: Batch = 8192,
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

    from longwave.cli import comparing, evaluating
    from longwave.evaluation.comparison import Comparison
    from longwave.evaluation.suites import read_suite

    steps = read_suite(suite)
    folder = comparing.open_folder(output, "compare-" + "-".join(Path(model).name for model in models)[:60])
    comparison = Comparison(
        comparing.candidates(models, comparing.split(methods)), steps, folder,
        lambda path: evaluating.load(path, dtype, device), data or [], lengths,
        evaluating.setup(dtype, device), tokens_per_batch,
    )  # fmt: skip
    comparing.measure(comparison, overwrite=overwrite, as_json=as_json)
