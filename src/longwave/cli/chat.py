"""`longwave chat`: talk with a model for as long as its context reaches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Method, To
from longwave.cli.options import Model, Options, check_inputs
from longwave.cli.settings import with_settings
from longwave.errors import is_out_of_memory
from longwave.extensions.decoding import NEW_TOKENS, Decoding
from longwave.settings import setting

if TYPE_CHECKING:
    from longwave.extensions.conversation import Conversation

HELP = "/reset forgets the conversation · /save FILE writes it as JSON · /exit or Ctrl-D leaves · Ctrl-C drops the turn"


@dataclass(frozen=True)
class ChatSettings(Decoding):
    """How the model answers: by default less predictably than `longwave generate` continues a text."""

    temperature: float = setting(0.7, "0 takes the most likely token every time.")
    top_p: float = setting(0.95, "Sample among the most likely tokens whose probabilities sum to this.")


@with_settings(ChatSettings)
def chat(
    model: Model,
    method: Method = None,
    option: Options = None,
    to: To = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A message before the first turn.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    **settings: Any,
) -> None:
    """Talk with a model: t doubles as the conversation grows, and answers are exact at every length.

    A model without a chat template continues the text. Commands: /help, /reset, /save FILE, /exit. A turn that fails
    prints an error and is forgotten. If turns come from a pipe, the exit code is then 1.

    Examples:

    longwave chat out

    longwave chat MODEL --method yarn --to 32768 --temperature 0
    """
    check_inputs(model)
    how = ChatSettings.create(**settings)

    from transformers import set_seed

    import longwave
    from longwave.cli import generating
    from longwave.extensions.conversation import Conversation
    from longwave.extensions.handle import find_extension

    method = generating.chosen(method, option)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    if find_extension(loaded.model) is not None:
        longwave.set_policy(loaded.model, "grow")
    set_seed(how.seed)
    talk = Conversation(loaded.model, loaded.tokenizer, system=system, **how.arguments(loaded.tokenizer))
    typer.echo(f"{talk.max_length:,} tokens of context. {HELP}", err=True)
    if not loaded.tokenizer.chat_template:
        typer.echo("The model has no chat template: it continues what you write.", err=True)
    session = Session(talk, how.max_new_tokens or NEW_TOKENS)
    for line in lines():
        if line == "/exit":
            break
        session.do(line)
    if session.failed and not sys.stdin.isatty():  # nobody read the message
        raise typer.Exit(1)


def lines() -> Iterator[str]:
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


@dataclass
class Session:
    """A conversation at a terminal.

    Arguments:
        talk: the conversation.
        most: the most tokens of an answer.
        failed: whether a turn or a command has failed so far.
    """

    talk: Conversation
    most: int
    failed: bool = False

    def do(self, line: str) -> None:
        """Take a line of the user: a command if it begins with /, or a turn."""
        name, _, argument = line.partition(" ")
        if name == "/reset":
            self.talk.reset()
            typer.echo("[a new conversation]", err=True)
        elif name == "/save":
            self.save(argument.strip() or "conversation.json")
        elif name == "/help":
            typer.echo(HELP, err=True)
        elif name.startswith("/"):
            self.fail(f"unknown command {name}. {HELP}")
        elif line:
            self.turn(line)

    def save(self, path: str) -> None:
        try:
            typer.echo(f"[saved to {self.talk.save(path)}]", err=True)
        except ValueError as error:
            self.fail(f"error: {error}")

    def turn(self, line: str) -> None:
        from transformers import TextStreamer

        talk = self.talk
        streamer = TextStreamer(talk.tokenizer, skip_prompt=True, skip_special_tokens=True)
        started = time.perf_counter()
        try:
            talk.say(line, max_new_tokens=self.most, streamer=streamer)
        except KeyboardInterrupt:
            typer.echo("\n[stopped; the turn is forgotten]", err=True)
            return
        except ValueError as error:
            self.fail(f"error: {error}")
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.fail("error: the memory does not suffice for this turn. Say it in fewer words, or start over: /reset.")
            return
        sys.stdout.flush()
        speed = talk.answered / (time.perf_counter() - started)
        typer.echo(
            f"[{talk.answered:,} new tokens, {talk.length:,} of {talk.max_length:,} in all · t {talk.factor:.4g} · "
            f"{speed:.1f} tokens/s, reading included]",
            err=True,
        )

    def fail(self, message: str) -> None:
        self.failed = True
        typer.echo(message, err=True)
