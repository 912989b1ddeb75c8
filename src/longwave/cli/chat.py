"""`longwave chat`: talk with a model for as long as its context reaches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Method, NewTokens, Temperature, To, TopP
from longwave.cli.options import Model, Seed, check_inputs

if TYPE_CHECKING:
    from longwave.extensions.conversation import Conversation

HELP = "/reset forgets the conversation · /save FILE writes it as JSON · /exit or Ctrl-D leaves · Ctrl-C drops the turn"


def chat(
    model: Model,
    max_new_tokens: NewTokens = None,
    method: Method = None,
    to: To = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A message before the first turn.")
    ] = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Talk with a model: t doubles as the conversation grows, and answers are exact at every length.

    Models without a chat template continue the text. Commands: /help, /reset, /save FILE, /exit.

    Examples:

    longwave chat out

    longwave chat MODEL --method yarn --to 32768 --temperature 0
    """
    check_inputs(model)

    import longwave
    from longwave.cli import generating
    from longwave.extensions.conversation import Conversation
    from longwave.extensions.handle import find_extension

    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    max_new_tokens = generating.DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if max_new_tokens < 1:
        raise ValueError(f"max new tokens must be at least 1, got {max_new_tokens}.")
    if find_extension(loaded.model) is not None:
        longwave.set_policy(loaded.model, "grow")
    options = generating.sampling(loaded.tokenizer, temperature, top_p, seed)
    talk = Conversation(loaded.model, loaded.tokenizer, system=system, **options)
    typer.echo(f"{talk.max_length:,} tokens of context. {HELP}", err=True)
    for line in _lines():
        if not _command(talk, line):
            break
        if line and not line.startswith("/"):
            _turn(talk, line, max_new_tokens)


def _lines() -> Iterator[str]:
    """What the user types, until the end of input."""
    while True:
        try:
            if sys.stdin.isatty():
                yield input("> ").strip()
            elif line := sys.stdin.readline():
                yield line.strip()
            else:
                return
        except EOFError:
            return


def _command(talk: Conversation, line: str) -> bool:
    """Do what a line that begins with / says; False to leave."""
    name, _, argument = line.partition(" ")
    if name == "/exit":
        return False
    if name == "/reset":
        talk.reset()
        typer.echo("[a new conversation]", err=True)
    elif name == "/save":
        path = argument.strip() or "conversation.json"
        try:
            typer.echo(f"[saved to {talk.save(path)}]", err=True)
        except ValueError as error:
            typer.echo(f"error: {error}", err=True)
        except OSError as error:
            typer.echo(f"error: cannot write {path}: {error.strerror}", err=True)
    elif name.startswith("/"):
        typer.echo(HELP if name == "/help" else f"unknown command {name}. {HELP}", err=True)
    return True


def _turn(talk: Conversation, line: str, max_new_tokens: int) -> None:
    import time

    from transformers import TextStreamer

    streamer = TextStreamer(talk.tokenizer, skip_prompt=True, skip_special_tokens=True)
    started, before = time.perf_counter(), talk.length
    try:
        talk.say(line, max_new_tokens=max_new_tokens, streamer=streamer)
    except KeyboardInterrupt:
        typer.echo("\n[stopped; the turn is forgotten]", err=True)
        return
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        return
    sys.stdout.flush()
    speed = (talk.length - before) / (time.perf_counter() - started)
    typer.echo(
        f"[{talk.length:,} of {talk.max_length:,} tokens · t {talk.factor:.4g} · {speed:.1f} tokens/s]", err=True
    )
