"""`longwave evaluate`: a suite of evaluations of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longwave.cli.comparing import Folder, Replace, Suite, Texts
from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods
from longwave.cli.options import Json, Model, check_inputs


def evaluate(
    model: Model,
    data: Texts = None,
    suite: Suite = "quick",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The model it was made from, measured beside it, unscaled."),
    ] = None,
    lengths: Lengths = None,
    methods: Methods = None,
    output: Folder = None,
    overwrite: Replace = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    tokens_per_batch: Batch = 8192,
) -> None:
    """Run a suite of evaluations on one model.

    quick: perplexity of the same targets, passkeys. standard: more of both, perplexity by stride, and windows
    shorter than the trained length, where nothing may be lost. A YAML file lists evaluations with their settings,
    see docs/evaluating.md.

    Writes JSON and PNG for each evaluation, and report.html. An interrupted run goes on where it was when it is
    started again.

    Examples:

    longwave evaluate out --data held-out.txt --base my-model --suite standard

    longwave evaluate my-model --data held-out.txt --methods none,ntk,yarn
    """
    check_inputs(model, base, data=data)

    from longwave.cli import comparing, evaluating
    from longwave.evaluation.comparison import Candidate, Comparison
    from longwave.evaluation.suites import read_suite

    steps = read_suite(suite)
    folder = comparing.open_folder(output, f"evaluate-{Path(model).resolve().name}")
    candidates = comparing.candidates([model], comparing.split(methods))
    if base is not None:
        candidates.append(Candidate(base, "base", ("none",)))
    comparison = Comparison(
        candidates, steps, folder, lambda path: evaluating.load(path, dtype, device), data or [], lengths,
        evaluating.setup(dtype, device), tokens_per_batch,
    )  # fmt: skip
    comparing.measure(comparison, overwrite=overwrite, as_json=as_json, model=model)
