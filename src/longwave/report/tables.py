"""Results as Rich tables: a row for each method, a column for each context length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from longwave.evaluation.curves import Curve, Grid
from longwave.evaluation.quantity import Quantity
from longwave.evaluation.writing import percent


def curve_table(curves: Sequence[Curve], quantity: Quantity, original_length: int) -> Table:
    """Values with their 95 % intervals; the best of each column in bold, a dash where a row was not measured."""
    # The box puts a space between columns: without padding five lengths fit 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    lengths = sorted({length for curve in curves for length in curve.lengths})
    for length in lengths:
        table.add_column(f"{ratio_text(length, original_length)}\n{length:,}", justify="right", no_wrap=True)
    columns = [{c.label: found[length].value for c in curves if length in (found := c.at())} for length in lengths]
    best = [quantity.best(column) if len(column) > 1 else [] for column in columns]
    for curve in curves:
        cells = [Text(curve.label).append(curve.name.removeprefix(curve.label), style="dim")]
        for length, names in zip(lengths, best, strict=True):
            value = curve.at().get(length)
            if value is None:
                cells.append(Text("–"))
                continue
            text = Text(quantity.text(value.value), style="bold" if curve.label in names else "")
            cells.append(text.append(quantity.beside(value), style="not bold dim"))
        table.add_row(*cells)
    return table


def grid_table(grid: Grid, original_length: int) -> Table:
    """Shares in per cent, a row for each depth and a column for each length."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=grid.name, title_justify="left")
    table.add_column("depth", justify="right", no_wrap=True)
    for length in grid.lengths:
        table.add_column(f"{ratio_text(length, original_length)}\n{length:,}", justify="right", no_wrap=True)
    for depth, rates in zip(grid.depths, grid.rates, strict=True):
        table.add_row(percent(depth), *(percent(rate) for rate in rates))
    return table


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each task and metric: value ± standard error, number of samples, and how many of them were cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("task", "metric"):
        table.add_column(name)
    cut = any(row.get("truncated") for row in rows)
    for name in ("value", "samples", "cut")[: 3 if cut else 2]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row["samples"]), str(row.get("truncated", "–"))][: 2 if cut else 1]
        table.add_row(row["task"], row["metric"], score_text(row), *counts)
    return table


def score_text(row: Mapping[str, Any]) -> str:
    """The value of a task ± its standard error; a dash without a value."""
    error = "" if not row.get("stderr") else f" ±{row['stderr']:.3f}"
    return "–" if row["value"] is None else f"{row['value']:.3f}{error}"


def ratio_text(length: int, original_length: int) -> str:
    """A length in units of the trained one, e.g. `4x`."""
    return f"{length / original_length:.3g}x"
