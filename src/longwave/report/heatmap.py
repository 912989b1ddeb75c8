"""Retrieval by length and depth of the needle: a heat map and a table for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from longwave.evaluation.results import Grid
from longwave.report.plots import blank
from longwave.report.tables import ratio_text

COLUMNS = 3  # maps side by side
COLOURS = "cividis"  # reads alike with any colour vision, and in grey


def plot_needle(
    grids: Sequence[Grid],
    path: Path | str,
    *,
    original_length: int,
    title: str | None = None,
    subtitle: str | None = None,
) -> Path:
    """Share of needles retrieved by context length (across) and depth (down), one map for each row.

    PNG, PDF or SVG by the suffix of `path`. Dark is none and light all of them; every cell has its number.
    """
    across = min(COLUMNS, len(grids))
    down = math.ceil(len(grids) / across)
    most, deepest = max(len(grid.lengths) for grid in grids), max(len(grid.depths) for grid in grids)
    size = (1.4 + across * (1.0 + 0.62 * most), 1.0 + down * (1.1 + 0.3 * deepest))
    figure = blank((max(size[0], 5.5), size[1]))
    every = figure.subplots(down, across, squeeze=False).ravel()
    for axes, grid in zip(every, grids, strict=False):
        shown = axes.imshow(grid.rates, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        ticks = [f"{length:,}\n{ratio_text(length, original_length)}" for length in grid.lengths]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_yticks(range(len(grid.depths)), [f"{100 * depth:.0f} %" for depth in grid.depths], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(_name(grid), fontsize=10)
        for y, row in enumerate(grid.rates):
            for x, rate in enumerate(row):
                colour = "black" if rate > 0.55 else "white"
                axes.text(x, y, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8, color=colour)
    for axes in every[len(grids) :]:
        axes.set_visible(False)
    figure.supxlabel("context length in tokens, and in multiples of the trained length", fontsize=9)
    figure.supylabel("depth of the needle", fontsize=9)
    bar = figure.colorbar(shown, ax=list(every), format=lambda value, _: f"{100 * value:.0f} %", pad=0.02)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title + (f"\n{subtitle}" if subtitle else ""), fontsize=11)
    path = Path(path)
    figure.savefig(path)
    return path


def needle_table(grid: Grid, original_length: int) -> Table:
    """Share of needles retrieved in per cent, a row for each depth and a column for each length."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=_name(grid), title_justify="left")
    table.add_column("depth", justify="right", no_wrap=True)
    for length in grid.lengths:
        table.add_column(f"{ratio_text(length, original_length)}\n{length:,}", justify="right", no_wrap=True)
    for depth, rates in zip(grid.depths, grid.rates, strict=True):
        table.add_row(f"{100 * depth:.0f} %", *(f"{100 * rate:.0f} %" for rate in rates))
    return table


def _name(grid: Grid) -> str:
    return grid.label + (f" ({grid.runs} runs)" if grid.runs > 1 else "")
