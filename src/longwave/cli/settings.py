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


def with_settings(settings: type[Settings], *, group: str | None = None) -> Callable[[Command], Command]:
    """Replace `**settings` in a command's signature by an option for every field of a `Settings` class.

    An option that is not given is None: `Settings.create` then takes the default.

    Arguments:
        group: the part of the help page for fields that name none.
    """

    def decorate(command: Command) -> Command:
        signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(settings)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [_option(item, kinds[item.name], group) for item in fields(settings)]
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return command

    return decorate


def with_fields(name: str, kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `name` of a command by the fields of a dataclass, which are annotated as options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            own = {item.name: given.pop(item.name) for item in fields(kind)}
            command(**given, **{name: kind(**own)})

        signature, hints = inspect.signature(command, eval_str=True), get_type_hints(kind, include_extras=True)
        kept = [each for each in signature.parameters.values() if each.name != name]
        added = [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name]
            )
            for item in fields(kind)
        ]
        parameters = sorted([*kept, *added], key=lambda each: each.kind)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(item: Field[Any], kind: Any, group: str | None) -> inspect.Parameter:
    choices, text = item.metadata["choices"], item.metadata["help"]
    if item.default is not None and item.default is not False and item.default != "":
        text += f' Default "{item.default}".' if " " in str(item.default) else f" Default {item.default}."
    kind = Literal[choices] if choices else kind_of(kind)
    information = typer.Option(
        f"--{item.name.replace('_', '-')}",  # a second name --no-… would leave no room on 80 columns
        help=escape(text),
        metavar=item.metadata["metavar"] or ({int: "N", float: "X", str: "TEXT"}.get(kind)),
        show_default=False,
        rich_help_panel=item.metadata["group"] or group,
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, information]
    )
