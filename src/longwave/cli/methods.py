"""`longwave methods`: the catalogue, and the options of one method."""

from __future__ import annotations

from dataclasses import MISSING
from inspect import Parameter
from typing import Annotated, Any

import typer

from longwave.cli.options import Json, print_json

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="List the options of this method, or of METHOD+ATTENTION.")
]


def methods(name: Name = None, as_json: Json = False) -> None:
    """List the scaling methods and the attention methods, or the options of one.

    A scaling method changes how fast pairs of dimensions turn, an attention method which keys are seen and at which
    distance. Options --method and --methods take METHOD[@SCHEDULE][+ATTENTION], or an attention method alone. A
    schedule is the rule from the length of a text to the length factor t: continuous, ceiling, static=8 or threshold.
    A name alone has the schedule of the table.

    Options of a method are given as --option KEY=VALUE, or behind its name: two-band:window=64.

    Examples:

    - `longwave methods two-band`
    - `longwave perplexity MODEL --data book.txt --methods none,yarn,two-band,yarn+dca`
    - `longwave perplexity MODEL --data book.txt --methods two-band,two-band:window=64`
    """
    if name is not None:
        show_options(name, as_json)
        return
    scaling, attention = catalogue()
    if as_json:
        print_json([*scaling, *attention])
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("scaling", "what it does", "schedule", "training", box=box.SIMPLE)
    for row in scaling:
        table.add_row(row["name"], row["summary"], row["schedule"], "needed" if row["needs_training"] else "optional")
    console.print(table)
    table = Table("attention", "what it does", "changes", "below it", box=box.SIMPLE)
    for row in attention:
        table.add_row(*(row[key] for key in ("name", "summary", "changes", "default_scaling")))
    console.print(table)
    console.print("below it: the scaling method of an attention method that is named alone; METHOD+ATTENTION names it.")
    console.print("longwave methods NAME: its source, its cost and its options.")


def catalogue() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What there is to know of every scaling method and every attention method, as JSON values."""
    from longwave.attention import ATTENTIONS
    from longwave.methods import METHODS

    scaling: list[dict[str, Any]] = [
        {
            "name": m.name,
            "kind": "scaling",
            "summary": m.summary,
            "source": m.source,
            "changes": "nothing" if m.name == "none" else "frequencies",
            "schedule": m.schedule,
            "needs_training": m.trained,
        }
        for m in METHODS.values()
    ]
    attention: list[dict[str, Any]] = [
        {
            "name": a.name,
            "kind": "attention",
            "summary": a.summary,
            "source": a.source,
            "changes": a.changes,
            "cost": a.cost,
            "default_scaling": a.trajectory,
            "needs_training": False,
        }
        for a in ATTENTIONS.values()
    ]
    return scaling, attention


def show_options(name: str, as_json: bool) -> None:
    """The options of a method, or of a scaling method with an attention method: default and help of each."""
    from longwave.extensions.spec import parse_spec

    spec = parse_spec(name)
    parts = [] if spec.attention is None else [spec.attention.name]
    if spec.attention is None or "+" in name:
        parts = [spec.method.name, *parts]
    known = {row["name"]: row for rows in catalogue() for row in rows}
    found = [{**known[part], "options": options_of(part)} for part in parts]
    if as_json:
        print_json(found)
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for row in found:
        console.print(f"{row['name']}: {row['summary']}", soft_wrap=True)
        facts: dict[str, Any] = {key: row[key] for key in ("source", "changes", "cost", "schedule") if key in row}
        if "default_scaling" in row:
            facts["scaling method below it, if none is named"] = row["default_scaling"]
        console.print("\n".join(f"{key}: {value}" for key, value in facts.items()), soft_wrap=True)
        table = Table("option", "default", "what it says", box=box.SIMPLE)
        for option in row["options"]:
            table.add_row(option["name"], "" if option["default"] is None else str(option["default"]), option["help"])
        console.print(table if row["options"] else "It has no options.")


def options_of(name: str) -> list[dict[str, Any]]:
    """Name, default and help of each option of a scaling method or an attention method, as JSON values."""
    from longwave.attention import ATTENTIONS
    from longwave.methods import METHODS

    if name in METHODS:
        found = METHODS[name].described_options()
    else:
        fields = ATTENTIONS[name].own_fields()
        found = [{"name": item.name, "default": item.default, **_about(item.metadata)} for item in fields]
    unset = (MISSING, Parameter.empty)
    return [{**option, "default": None if option["default"] in unset else option["default"]} for option in found]


def _about(metadata: Any) -> dict[str, Any]:
    choices = f" One of: {', '.join(metadata['choices'])}." if metadata["choices"] else ""
    return {"help": metadata["help"] + choices}
