"""Results as Rich tables: a row for each method, a column for each context length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from longwave.evaluation.results import Curve


def perplexity_table(curves: Sequence[Curve], original_length: int) -> Table:
    """Perplexity ± half the width of its 95 % interval; the lowest of each column in bold."""
    table = _table(curves, original_length)
    for curve in curves:
        cells = [_label(curve)]
        for column, value in enumerate(curve.values):
            best = min(other.values[column].value for other in curves)
            half = (value.high - value.low) / 2
            places = decimals(value.value if round(half, decimals(value.value)) else half)
            text = Text(number(value.value), style="bold" if len(curves) > 1 and value.value == best else "")
            cells.append(text.append(f" ±{half:,.{places}f}" if half else "", style="not bold dim"))
        table.add_row(*cells)
    return table


def passkey_table(curves: Sequence[Curve], original_length: int) -> Table:
    """Share of keys retrieved, with its 95 % interval, in per cent."""
    table = _table(curves, original_length)
    for curve in curves:
        cells = [_label(curve)]
        for value in curve.values:
            interval = f" {100 * value.low:.0f}–{100 * value.high:.0f}"
            cells.append(Text(f"{100 * value.value:.0f} %").append(interval, style="dim"))
        table.add_row(*cells)
    return table


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each task and metric: its value ± standard error, over how many samples, how many of them cut."""
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
    """The value of a task ± its standard error, as far as it has them."""
    error = "" if not row.get("stderr") else f" ±{row['stderr']:.3f}"
    return "–" if row["value"] is None else f"{row['value']:.3f}{error}"


def ratio_text(length: int, original_length: int) -> str:
    """A length in units of the trained one, e.g. `4x`."""
    return f"{length / original_length:.3g}x"


def _table(curves: Sequence[Curve], original_length: int) -> Table:
    # The box puts a space between columns: without padding five lengths fit 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    for length in curves[0].lengths:
        table.add_column(f"{ratio_text(length, original_length)}\n{length:,}", justify="right", no_wrap=True)
    return table


def _label(curve: Curve) -> Text:
    return Text(curve.label).append(f" ({curve.runs} runs)" if curve.runs > 1 else "", style="dim")


def number(value: float) -> str:
    """Three significant digits at least, and two decimals at most: 2.75, 12.9, 1,234."""
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
