"""`longwave train`: the options are the fields of `TrainConfig`, with their help."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from longwave.cli.options import Data, Json, Model, Output, Overwrite, check_inputs, print_json
from longwave.cli.settings import with_settings
from longwave.evaluation.lengths import doublings
from longwave.settings import parse_pairs
from longwave.training.config import TrainConfig

Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder; start if there is none.")
]


@with_settings(TrainConfig)
def train(
    model: Model,
    data: Data,
    output: Output,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Extend a model and train it on text, with its own window, for up to --max-factor times its length.

    No window that training sees is longer than --train-length tokens, whatever the target. The tokens of a row are
    spread over positions up to t times the original length, t drawn anew for every micro-batch. With --long-share
    some micro-batches are real windows of several rows. Methods without learned frequencies (ntk, yarn, linear,
    none) train through the same path.

    Examples:

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output ntk --method ntk

    longwave train MODEL --data books/ --train-length 65536 --row-length 4096 --long-share 0.6 --max-factor 16 -o out

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out --resume
    """
    check_inputs(model, data=data)

    from transformers.utils.logging import disable_progress_bar

    import longwave
    from longwave.files import read_json
    from longwave.layout import CHECKPOINTS, TRAINING

    disable_progress_bar()  # of transformers: the run has its own
    settings["options"] = parse_pairs(settings.get("options") or ()) or None
    try:
        folder = longwave.train(
            model, data, output, resume=resume, overwrite=overwrite, progress=not as_json, **settings
        )
    except KeyboardInterrupt:
        kept = any((output / CHECKPOINTS).glob("checkpoint-*"))
        what = "goes on from the last checkpoint" if kept else "starts again: there is no checkpoint yet"
        typer.echo(f"interrupted: the same command with --resume {what}", err=True)
        raise
    if int(os.environ.get("RANK", 0)) > 0:  # under torchrun one process speaks for all
        return
    summary = {"output": str(folder), **read_json(folder / TRAINING)["result"]}
    if as_json:
        print_json(summary)
        return
    lengths = doublings(settings["max_factor"])
    typer.echo(
        f"{summary['steps']} steps, {summary['tokens']:,} tokens, loss {summary['first_loss']:.3f} -> "
        f"{summary['last_loss']:.3f} (mean of the last {min(10, summary['steps'])}), written to {folder}\n"
        f"{_longest(summary['trained_length'])}"
        f"Next: longwave perplexity {folder} --data HELD_OUT.txt --lengths {lengths}"
    )


def _longest(tokens: int | None) -> str:
    """A line on the longest real window; empty where it is not known."""
    return "" if tokens is None else f"The longest window trained on has {tokens:,} tokens. Beyond, it extrapolates.\n"
