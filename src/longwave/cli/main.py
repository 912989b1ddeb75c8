"""The `longwave` command: assembles the commands and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import longwave
from longwave.cli.errors import explain
from longwave.cli.measuring import command_of
from longwave.cli.notes import notes
from longwave.evaluation.registry import EVALUATIONS

# Where a command stands on the help page. Every command that no panel names is of the first one.
MEASURE = "Train and measure"
PANELS = {
    **dict.fromkeys(("generate", "chat", "serve"), "Use"),
    **dict.fromkeys(("evaluate", "compare", "plot", "report"), "Compare and report"),
    **dict.fromkeys(("merge", "export", "push"), "Pass on"),
    **dict.fromkeys(("methods", "recipes"), "Catalogue"),
}


def commands() -> tuple[str, ...]:
    """Every command, in the order of the help. Those of EVALUATIONS are made from it.

    Each of the others is a function NAME in a module longwave.cli.NAME.
    """
    return ("train", "data", *EVALUATIONS, "tasks", "demo", *PANELS)


COMMANDS = commands()

EPILOG = """Start here:

- `longwave demo`
- `longwave perplexity MODEL --data book.txt --methods none,ntk,yarn`
- `longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out`
- `longwave perplexity out --data book.txt --lengths 1x,2x,4x,8x,16x`
"""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"longwave {longwave.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Extend the context of RoPE language models, and measure what it gained."""


def build_app() -> typer.Typer:
    """The command line, its commands in the order in which help lists them."""
    app = typer.Typer(
        name="longwave",
        help="Extend the context of RoPE language models, and measure what it gained.",
        epilog=EPILOG,
        rich_markup_mode="markdown",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for name in commands():
        made = name in EVALUATIONS
        function = command_of(EVALUATIONS[name]) if made else getattr(import_module(f"longwave.cli.{name}"), name)
        app.command(name, rich_help_panel=PANELS.get(name, MEASURE))(function)
    return app


app = build_app()


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code.

    0 success; 1 an error, told in one or two lines on stderr; 2 wrong usage; 130 a command that was interrupted; 143
    a training that SIGTERM has stopped. An interrupt outside of a command goes to the caller.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args  # accepted anywhere, also after the command
    args = [arg for arg in args if arg != "--debug"]
    try:
        with notes():
            app(args, prog_name="longwave")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # `longwave methods | head`: the reader left, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        message = Text.assemble(("error: ", "bold red"), explain(error))
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        return 1
    return 0
