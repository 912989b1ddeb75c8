"""Options of a command from the fields of a `Settings` class, so that help, checks and documentation are one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import typer
from rich.markup import escape

from longwave.settings import REQUIRED, Settings, kind_of

WIDEST = 22  # characters of choices beside an option; more would be broken within a word on 80 columns
METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", list[str]: "KEY=VALUE"}
Command = TypeVar("Command", bound=Callable[..., Any])


def with_settings(
    settings: type[Settings], *, group: str | None = None, as_text: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Replace `**settings` in a command's signature by an option for every field of a `Settings` class.

    An option that is not given is None, for which `Settings.create` takes the default. A mapping becomes an option
    KEY=VALUE that may be repeated; `settings.parse_pairs` reads its values.

    Arguments:
        group: the part of the help page for fields that name none.
        as_text: fields that the command reads itself: it gets their values as text.
    """

    def decorate(command: Command) -> Command:
        signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(settings)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        read_as = {name: str if name in as_text else kind for name, kind in kinds.items()}
        added = [_option(item, read_as[item.name], group, settings) for item in fields(settings)]
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


def _default(item: Field[Any], settings: type[Settings]) -> str:
    """The sentence of the help page that says what a setting is if it is not given; empty if the help says it."""
    plain = None if item.default is False else item.default
    shown = f'"{plain}"' if " " in str(plain) else plain
    said = isinstance(plain, int | float | str) and plain != ""
    own = settings.recipe.get(item.name)
    if own is None:
        return f" Default {shown}." if said else ""
    own = "on" if own is True else own
    return f" Default {own} for {settings.recipe_of}" + (f", {shown} for most others." if said else ".")


def _option(item: Field[Any], kind: Any, group: str | None, settings: type[Settings]) -> inspect.Parameter:
    choices, kind = item.metadata["choices"], kind_of(kind)
    text = item.metadata["help"] + _default(item, settings)
    listed, pairs = "|".join(choices), get_origin(kind) is Mapping
    if len(listed) > WIDEST:
        text += f" One of: {', '.join(choices)}."
    name = item.name.replace("_", "-")
    kind = list[str] if pairs else Literal[tuple(choices)] if choices else kind
    information = typer.Option(
        f"--{name.removesuffix('s') if pairs else name}",  # a second name --no-… would leave no room on 80 columns
        help=escape(text),
        metavar=item.metadata["metavar"] or ("NAME" if len(listed) > WIDEST else METAVARS.get(kind)),
        show_default=False,
        rich_help_panel=item.metadata["group"] or group,
    )
    required = item.default is REQUIRED
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, information],
    )
