"""`longwave recipes`: the recipes that come with longwave, and `longwave train --config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.cli.options import Json, print_json

NOT_SAID = "-"  # what --dry-run needs no value for

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print the YAML of this recipe.")]


def recipes(name: Name = None, as_json: Json = False) -> None:
    """List the recipes for `longwave train --config NAME`, or print one.

    A recipe is a YAML file. Its keys are the options of `longwave train`, and options of the command line come before
    those of the file. To change more, print a recipe into a file of your own.

    Examples:

    longwave train --config laptop

    longwave train MODEL --config llama2-7b-clex-4k --data books/ --output out --dry-run

    longwave recipes laptop > mine.yaml
    """
    from longwave.training.recipes import key_of, names, parse_recipe, read_recipe, text_of

    if name is not None:
        text = text_of(name)
        if not as_json:
            typer.echo(text, nl=False)
            return
        print_json({key_of(key): value for key, value in parse_recipe(text, name).given.items()})
        return
    found = {each: read_recipe(each).about for each in names()}
    if as_json:
        print_json([{"name": each, "about": about} for each, about in found.items()])
        return
    width = max(map(len, found))
    for each, about in found.items():
        typer.echo(f"{each:<{width}}  {about}")


def _noted(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Note an option that is read before all others. After the last one, the recipe fills in what was not given."""
    noted = context.meta.setdefault("longwave.recipe", {})
    noted[parameter.name] = value
    if len(noted) == len(EAGER):
        context.default_map = _defaults(noted["config"], tuple(noted["without"] or ()), noted["dry_run"])
    return value


def _defaults(config: str | None, without: tuple[str, ...], dry_run: bool) -> dict[str, Any]:
    """What the options are where the command line does not give them."""
    from longwave.training.recipes import read_recipe

    unsaid: dict[str, Any] = {"data": [NOT_SAID], "output": NOT_SAID} if dry_run else {}
    if config is None:
        if without:
            raise ValueError("--without leaves out keys of a recipe. Pass --config too.")
        return unsaid
    given = dict(read_recipe(config).without(without).given)
    options = given.pop("options", {})
    if options:
        given["options"] = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    return unsaid | given


Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE|NAME", callback=_noted, is_eager=True,
        help="A recipe: a YAML file, or a name of `longwave recipes`. Options come before what it says.",
    ),
]  # fmt: skip
Without = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="KEY", callback=_noted, is_eager=True, help="Leave a key of the recipe out."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", callback=_noted, is_eager=True, help="Say what the run would be and need, and stop."),
]
EAGER = ("config", "without", "dry_run")


def is_given(path: Path) -> bool:
    """Whether a path was given, by an option or a recipe."""
    return str(path) != NOT_SAID
