"""`longwave methods`: the catalogue."""

from __future__ import annotations

from typing import Any

from longwave.cli.options import Json, print_json


def methods(as_json: Json = False) -> None:
    """List the scaling methods and the attention methods: what each does and changes, and where it comes from.

    A scaling method changes how fast pairs of dimensions turn, an attention method which keys are seen and at which
    distance. Options --method and --methods take SCALING, SCALING@SCHEDULE, ATTENTION or SCALING+ATTENTION. A schedule
    is the rule from the length of a text to the length factor t: continuous, ceiling, static=8 or threshold. A name
    alone has the schedule of the table.

    Examples:

    - `longwave methods --json`
    - `longwave perplexity MODEL --data book.txt --methods none,yarn,two-band,yarn+dca`
    """
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
    if as_json:
        print_json([*scaling, *attention])
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("scaling", "what it does", "source", "schedule", "needs training", box=box.SIMPLE)
    for row in scaling:
        table.add_row(
            row["name"], row["summary"], row["source"], row["schedule"], "yes" if row["needs_training"] else "no"
        )
    console.print(table)
    table = Table("attention", "what it does", "source", "changes", "cost", box=box.SIMPLE)
    for row in attention:
        table.add_row(*(row[name] for name in ("name", "summary", "source", "changes", "cost")))
    console.print(table)
