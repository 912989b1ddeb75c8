"""Options of a command from the fields of a `Settings` class, so that help, checks and documentation are one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer
from rich.markup import escape

from longwave.settings import Settings, kind_of

Command = TypeVar("Command", bound=Callable[..., Any])


def with_settings(settings: type[Settings], *, as_text: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Replace `**settings` in a command's signature by an option for every field of a `Settings` class.

    An option that is not given is None: `Settings.create` then takes the default.

    Arguments:
        as_text: fields whose value the command gets as the user wrote it, to read it itself.
    """

    def decorate(command: Command) -> Command:
        signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(settings)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [_option(item, str if item.name in as_text else kinds[item.name]) for item in fields(settings)]
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return command

    return decorate


def _option(item: Field[Any], kind: Any) -> inspect.Parameter:
    choices, text = item.metadata["choices"], item.metadata["help"]
    if item.default is not None and item.default is not False and item.default != "":
        text += f" Default {item.default}."
    kind = Literal[tuple(choices)] if choices else kind_of(kind)
    information = typer.Option(
        f"--{item.name.replace('_', '-')}",  # a second name --no-… would leave no room on 80 columns
        help=escape(text),
        metavar=item.metadata["metavar"] or ({int: "N", float: "X", str: "TEXT"}.get(kind)),
        show_default=False,
        rich_help_panel=item.metadata["group"],
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, information]
    )
