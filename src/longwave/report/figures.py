"""Figures of a report beyond quality by length: retrieval by depth, loss by position, a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longwave.report.extrapolation import sign
from longwave.report.plots import COLOURS, GRID, MARK, PAPER, blank, plain_ticks, style_of, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0
Entries = Sequence[Mapping[str, Any]]


def panels(titles: Sequence[str], height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per title, `columns` side by side, each `height` inches; axes in that order."""
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = blank((WIDTH, rows * height), pad=0.1)
    found = [figure.add_subplot(rows, columns, index + 1) for index in range(len(titles))]
    for axes, title in zip(found, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure, found


def by_depth(rows: Mapping[str, Entries], trained: Mapping[str, int | None]) -> Figure:
    """Share retrieved for each length and depth, a panel for each row. White is 0 %, full colour 100 %.

    Arguments:
        rows: the entries of each row.
        trained: the longest window that each row was trained on; longer ones are marked.
    """
    from matplotlib.patches import Rectangle

    depths = sorted({each["depth"] for entries in rows.values() for entry in entries for each in entry["by_depth"]})
    figure, found = panels(list(rows), 1.1 + 0.22 * len(depths))
    for axes, (label, entries) in zip(found, rows.items(), strict=True):
        for column, entry in enumerate(entries):
            for each in entry["by_depth"]:
                place, rate = depths.index(each["depth"]), each["rate"]
                axes.add_patch(Rectangle((column - 0.5, place - 0.5), 1, 1, facecolor=COLOURS[0], alpha=rate))
                axes.add_patch(Rectangle((column - 0.5, place - 0.5), 1, 1, facecolor="none", edgecolor=GRID))
                axes.text(column, place, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8,
                          color=PAPER if rate > 0.5 else "#000000")  # fmt: skip
        axes.set_xticks(
            range(len(entries)),
            [f"{entry['length']:,}{sign(entry['length'], trained.get(label))}" for entry in entries],
        )
        axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}" for depth in depths])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.5, len(entries) - 0.5)
        axes.set_ylim(len(depths) - 0.5, -0.5)
        axes.set_xlabel("context length in tokens")
        axes.set_ylabel("depth in %")
    return figure


def by_position(rows: Mapping[str, Entries], original_length: int) -> Figure:
    """Mean loss per token against the position in the window, a line for each row; the trained length is marked."""
    figure = blank((WIDTH, 4.2))
    axes = tidy(figure.add_subplot())
    for index, (label, bins) in enumerate(rows.items()):
        middles = [(each["start"] + each["end"]) / 2 for each in bins]
        axes.plot(middles, [each["nll"] for each in bins], linewidth=1.6, label=label, **style_of(index))
    axes.axvline(original_length, color=MARK, linewidth=1, linestyle=":", zorder=0)
    axes.annotate("pre-trained length", (original_length, 1), xycoords=axes.get_xaxis_transform(), xytext=(3, -2),
                  textcoords="offset points", va="top", fontsize=8, color=MARK)  # fmt: skip
    axes.set_xlabel("position in the window, in tokens")
    axes.set_ylabel("nats per token")
    legend(axes)
    return figure


def training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, norms of all gradients and of the field's, and learning rates, by optimizer step.

    The pale line is the value of each step, at the t of that step. The strong line is its running mean.
    """
    figure, found = panels(("loss in nats per token", "gradient norm", "learning rate"), 2.3, columns=1)
    steps = [row["step"] for row in rows]
    _smoothed(found[0], [(row["step"], row["loss"]) for row in rows], COLOURS[0])
    parts = (("all parameters", "grad_norm", "weights", "lr"), ("field", "field_grad_norm", "field", "field_lr"))
    for (what, norm, whose, rate), colour in zip(parts, COLOURS, strict=False):
        points = [(row["step"], row[norm]) for row in rows if row.get(norm)]  # null or 0: no such parameters
        if points:
            _smoothed(found[1], points, colour, what)
        points = [(row["step"], row[rate]) for row in rows if row.get(rate)]
        if points:
            found[2].plot(*zip(*points, strict=True), color=colour, linewidth=1.8, label=whose)
    for axes in found[1:]:
        axes.set_yscale("log")
        plain_ticks(axes)
        legend(axes)
    for axes in found:
        tidy(axes)
        axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    found[-1].set_xlabel("optimizer step")
    return figure


def legend(axes: Axes) -> None:
    """Names of the lines beside the axes, where they hide nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=2.8)


def _smoothed(axes: Axes, points: Sequence[tuple[int, float]], colour: str, label: str | None = None) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.9)
    axes.plot(steps, _running_mean(values), color=colour, linewidth=1.8, label=label)


def _running_mean(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Exponential mean, divided by the sum of its weights so far: the first values do not count too much."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        found.append(total / weight)
    return found
