"""`longwave train`: the options are the fields of `TrainConfig`, with their help."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer
from rich.markup import escape

from longwave.cli.options import Data, Json, Model, Output, Overwrite, check_inputs, print_json
from longwave.training.config import TrainConfig

REQUIRED = ("train_length", "max_factor")
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder; start if there is none.")
]


def _option(item: Field[Any], kind: Any) -> inspect.Parameter:
    """A command line option for a field of the config; not given is None, so that recipes can tell."""
    text, choices, several = item.metadata["help"], item.metadata["choices"], item.name == "options"
    if not (several or item.name in REQUIRED or item.default is None or item.default is False):
        text += f" (default {item.default})"
    kind = str if several else next((k for k in get_args(kind) if k is not type(None)), kind)
    if choices:
        kind = Literal[choices]
    name = "option" if several else item.name.replace("_", "-")
    information = typer.Option(
        f"--{name}",  # flags are off by default, and a second name --no-… leaves no room on 80 columns
        help=escape(text),
        show_default=False,
        rich_help_panel=item.metadata["group"],
    )
    value = list[str] if several else kind
    if item.name in REQUIRED:
        return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[value, information])
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value | None, information]
    )


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace `**settings` in a command's signature by an option for every field of `TrainConfig`."""
    signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(TrainConfig)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [_option(item, kinds[item.name]) for item in fields(TrainConfig)]
    command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return command


@_with_settings
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

    Training runs at --train-length tokens whatever the target: the tokens of a window are spread over
    positions up to t times the original length, t drawn anew for every micro-batch. Methods without
    learned frequencies (ntk, yarn, linear, none) train through the same path.

    Examples:

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output ntk --method ntk

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out --resume
    """
    check_inputs(model, data=data)

    from transformers.utils.logging import disable_progress_bar

    import longwave
    from longwave.files import read_json

    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, for files too small to need one
    settings["options"] = _parse_options(settings.get("options") or [])
    try:
        folder = longwave.train(
            model, data, output, resume=resume, overwrite=overwrite, progress=not as_json, **settings
        )
    except KeyboardInterrupt:
        kept = any((output / "checkpoints").glob("checkpoint-*"))
        what = "goes on from the last checkpoint" if kept else "starts again: there is no checkpoint yet"
        typer.echo(f"interrupted: the same command with --resume {what}", err=True)
        raise
    if int(os.environ.get("RANK", 0)) > 0:  # under torchrun one process speaks for all
        return
    summary = {"output": str(folder), **read_json(folder / "training.json")["result"]}
    if as_json:
        print_json(summary)
        return
    lengths = ",".join(f"{2**k}x" for k in range(int(settings["max_factor"]).bit_length()))
    typer.echo(
        f"{summary['steps']} steps, {summary['tokens']:,} tokens, loss {summary['first_loss']:.3f} -> "
        f"{summary['last_loss']:.3f} (mean of the last {min(10, summary['steps'])}), written to {folder}\n"
        f"Next: longwave perplexity {folder} --data HELD_OUT.txt --lengths {lengths}"
    )


def _parse_options(pairs: list[str]) -> dict[str, Any] | None:
    """`KEY=VALUE`, the value as JSON where it is JSON and as text where it is not."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise ValueError(f"--option takes KEY=VALUE, got {pair!r}: write --option steps=8.")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options or None
