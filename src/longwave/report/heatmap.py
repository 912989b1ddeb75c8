"""Shares by length and depth as heat maps, one for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longwave.evaluation.curves import Grid
from longwave.evaluation.kinds import Share
from longwave.evaluation.writing import percent
from longwave.report.extrapolation import LEGEND, is_known, sign, window_text
from longwave.report.plots import blank
from longwave.report.ratios import ratio_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3  # maps side by side
COLOURS = "cividis"  # reads alike with any colour vision, and in grey


def grid_figure(
    grids: Sequence[Grid],
    quantity: Share,
    *,
    original_length: int,
    title: str | None = None,
    subtitle: str | None = None,
) -> Figure:
    """Share of successes by context length (across) and depth (down), one map for each row.

    Dark is none and light all of them; every cell has its number.
    """
    known = is_known(grid.trained for grid in grids)
    across = min(COLUMNS, len(grids))
    down = math.ceil(len(grids) / across)
    most, deepest = max(len(grid.lengths) for grid in grids), max(len(grid.depths) for grid in grids)
    size = (1.4 + across * (1.0 + 0.62 * most), 1.0 + down * (1.1 + 0.3 * deepest))
    figure = blank((max(size[0], 5.5), size[1]))
    every = figure.subplots(down, across, squeeze=False).ravel()
    for axes, grid in zip(every, grids, strict=False):
        shown = axes.imshow(grid.rates, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        ratios = [f"{ratio_text(length, original_length)}{sign(length, grid.trained)}" for length in grid.lengths]
        ticks = [f"{length:,}\n{ratio}" for length, ratio in zip(grid.lengths, ratios, strict=True)]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_yticks(range(len(grid.depths)), [percent(depth) for depth in grid.depths], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        window = f" ≤{window_text(grid.trained, original_length)}" if known else ""
        axes.set_title(grid.name + window, fontsize=10)
        for y, row in enumerate(grid.rates):
            for x, rate in enumerate(row):
                colour = "black" if rate > 0.55 else "white"
                axes.text(x, y, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8, color=colour)
    for axes in every[len(grids) :]:
        axes.set_visible(False)
    across_label = "context length in tokens, and in multiples of the pre-trained length"
    figure.supxlabel(f"{across_label}\n{LEGEND}" if known else across_label, fontsize=9)
    figure.supylabel(f"depth of the {quantity.place}", fontsize=9)
    bar = figure.colorbar(shown, ax=list(every), format=lambda value, _: percent(value), pad=0.02)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title + (f"\n{subtitle}" if subtitle else ""), fontsize=11)
    return figure
