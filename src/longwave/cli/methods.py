"""`longwave methods`: the catalogue."""

from __future__ import annotations

from longwave.cli.options import Json, print_json


def methods(as_json: Json = False) -> None:
    """List the scaling methods: what each does, where it comes from, whether it needs training.

    Wherever a command takes --method or --methods, a name may carry a schedule, the rule from sequence
    length to length factor t: NAME@continuous (default), NAME@ceiling, NAME@static=8, NAME@threshold.

    Example:

    - `longwave methods --json`
    """
    from longwave.methods import METHODS

    if as_json:
        print_json(
            [
                {"name": m.name, "summary": m.summary, "source": m.source, "needs_training": m.trained}
                for m in METHODS.values()
            ]
        )
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "source", "needs training", box=box.SIMPLE)
    for m in METHODS.values():
        table.add_row(m.name, m.summary, m.source, "yes" if m.trained else "no")
    Console().print(table)
