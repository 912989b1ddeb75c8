"""`longwave methods`: the catalogue."""

from __future__ import annotations

from longwave.cli.options import Json, print_json


def methods(as_json: Json = False) -> None:
    """List the scaling methods: what each does, where it comes from, whether it needs training.

    Options --method and --methods take NAME or NAME@SCHEDULE. A schedule is the rule from the length of a text to
    the length factor t: continuous, ceiling, static=8 or threshold. NAME alone has the schedule of the table.

    Example:

    - `longwave methods --json`
    """
    from longwave.methods import METHODS

    if as_json:
        print_json(
            [
                {
                    "name": m.name,
                    "summary": m.summary,
                    "source": m.source,
                    "schedule": m.schedule,
                    "needs_training": m.trained,
                }
                for m in METHODS.values()
            ]
        )
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "source", "schedule", "needs training", box=box.SIMPLE)
    for m in METHODS.values():
        table.add_row(m.name, m.summary, m.source, m.schedule, "yes" if m.trained else "no")
    Console().print(table)
