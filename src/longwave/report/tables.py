"""Results as Rich tables: a row for each method, a column for each context length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from longwave.evaluation.curves import Curve, Grid
from longwave.evaluation.quantity import Quantity
from longwave.evaluation.records import TRAINED
from longwave.evaluation.writing import percent
from longwave.report.extrapolation import LEGEND, is_known, sign, window_text
from longwave.report.ratios import ratio_text


def curve_table(curves: Sequence[Curve], quantity: Quantity, original_length: int) -> Table:
    """Values with their 95 % intervals; the best of each column in bold, a dash where a row was not measured.

    Beside its name a row has the longest window that it was trained on, and `*` marks what lies beyond.
    """
    # The box puts a space between columns: without padding five lengths fit 80 columns.
    known = is_known(curve.trained for curve in curves)
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=LEGEND if known else None, caption_justify="left"
    )
    table.add_column("method", no_wrap=True)
    lengths = sorted({length for curve in curves for length in curve.lengths})
    for length in lengths:
        table.add_column(f"{ratio_text(length, original_length)}\n{length:,}", justify="right", no_wrap=True)
    columns = [{c.label: found[length].value for c in curves if length in (found := c.at())} for length in lengths]
    best = [quantity.best(column) if len(column) > 1 else [] for column in columns]
    for curve in curves:
        window = f" ≤{window_text(curve.trained, original_length)}" if known else ""
        cells = [Text(curve.label).append(curve.name.removeprefix(curve.label) + window, style="dim")]
        for length, names in zip(lengths, best, strict=True):
            value = curve.at().get(length)
            if value is None:
                cells.append(Text("–"))
                continue
            text = Text(quantity.text(value.value), style="bold" if curve.label in names else "")
            beside, mark = quantity.beside(value), sign(length, curve.trained)
            cells.append(text.append(mark + beside.removeprefix(" ") if mark else beside, style="not bold dim"))
        table.add_row(*cells)
    return table


def grid_table(grid: Grid, original_length: int) -> Table:
    """Shares in per cent, a row for each depth and a column for each length; `*` marks lengths beyond the training."""
    known = is_known([grid.trained])
    title = f"{grid.name} ≤{window_text(grid.trained, original_length)}" if known else grid.name
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("depth", justify="right", no_wrap=True)
    for length in grid.lengths:
        head = f"{ratio_text(length, original_length)}{sign(length, grid.trained)}\n{length:,}"
        table.add_column(head, justify="right", no_wrap=True)
    for depth, rates in zip(grid.depths, grid.rates, strict=True):
        table.add_row(percent(depth), *(percent(rate) for rate in rates))
    return table


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each task and metric: value ± standard error, number of samples, and how many of them were cut."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption=tasks_window(rows) or None,
        caption_justify="left",
    )  # fmt: skip
    for name in ("task", "metric"):
        table.add_column(name)
    cut = any(row.get("truncated") for row in rows)
    for name in ("value", "samples", "cut")[: 3 if cut else 2]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row["samples"]), str(row.get("truncated", "–"))][: 2 if cut else 1]
        table.add_row(row["task"], row["metric"], score_text(row), *counts)
    return table


def tasks_window(rows: Sequence[Mapping[str, Any]]) -> str:
    """The longest window that the model of all rows was trained on, in words; empty where records do not tell."""
    if not any(TRAINED in row for row in rows):
        return ""
    longest = rows[0].get(TRAINED)
    return f"longest window trained on: {'unknown' if longest is None else f'{longest:,} tokens'}"


def score_text(row: Mapping[str, Any]) -> str:
    """The value of a task ± its standard error; a dash without a value."""
    error = "" if not row.get("stderr") else f" ±{row['stderr']:.3f}"
    return "–" if row["value"] is None else f"{row['value']:.3f}{error}"
