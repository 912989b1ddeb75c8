"""`longwave evaluate`: a suite of evaluations of one model."""

from __future__ import annotations

from typing import Annotated

import typer

from longwave.cli import comparing
from longwave.cli.comparing import AskedOfSuite, Suite, Texts
from longwave.cli.evaluating import results_folder
from longwave.cli.options import Model, check_inputs
from longwave.cli.settings import with_fields
from longwave.evaluation.suites import read_suite


@with_fields("asked", AskedOfSuite)
def evaluate(
    model: Model,
    asked: AskedOfSuite,
    data: Texts = None,
    suite: Suite = "quick",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The model that it was made from, measured too, unscaled."),
    ] = None,
) -> None:
    """Run a suite of evaluations on one model.

    quick: perplexity of the same targets, passkeys. standard: more of both, perplexity by stride and by position,
    needles, and windows shorter than the trained length, where nothing may be lost. A YAML file lists evaluations
    with their settings, see docs/evaluating.md.

    Writes JSON and PNG for each evaluation, and report.html. The same command goes on where an interrupted run
    stopped.

    Examples:

    longwave evaluate out --data held-out.txt --base my-model --suite standard

    longwave evaluate my-model --data held-out.txt --methods none,ntk,yarn
    """
    steps = read_suite(suite)
    check_inputs(model, base, data=data)

    from longwave.evaluation.candidates import Candidate

    candidates = comparing.candidates([model], asked.specs)
    if base is not None:
        candidates.append(Candidate(base, "base", ("none",)))
    folder = results_folder(asked.output, "evaluate", model)
    comparing.measure(asked.comparison(candidates, steps, folder, data), asked, model=model)
