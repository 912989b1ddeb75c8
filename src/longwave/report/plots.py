"""Results as figures: one line for each method, context length on a base-2 logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.evaluation.curves import Curve
from longwave.evaluation.quantity import Quantity
from longwave.report.extrapolation import HOLLOW, is_beyond, is_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK, GRID, SOFT, INK, PAPER = "#777777", "#e6e6e6", "#555555", "#222222", "#ffffff"
# Okabe & Ito's palette, told apart with any colour vision; yellow left out, it is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # the second and third round through the palette
TICK_STEPS = (
    *(tuple(1 + i * step for i in range(round(9 / step))) for step in (0.05, 0.1, 0.2, 0.5)),
    (1, 1.5, 2, 3, 4, 6, 8),
    (1, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
)
LABEL_GAP = 0.047  # between the centres of two labels, as a share of the height of the axes


def curve_figure(
    curves: Sequence[Curve],
    quantity: Quantity,
    *,
    original_length: int,
    title: str | None = None,
    subtitle: str | None = None,
    bands: bool = True,
) -> Figure:
    """A quantity by context length, with 95 % bands, or without `bands`.

    Bands say how a row would vary over other texts or prompts. Rows measured on the same texts may differ beyond
    chance although their bands overlap. The axis of lengths is logarithmic, and so is the axis of a loss: equal ratios
    look equal, and a collapse does not flatten the rest. The length of pre-training is marked. Signs are hollow where a
    length is longer than the longest window that the row was trained on. Each line has its label at its right end.
    """
    figure, axes = _figure(curves, original_length, title, subtitle)
    if quantity.scale == "log":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: quantity.text(value))
    axes.set_ylabel(quantity.noun)
    _lines(axes, curves, bands=bands)
    if is_known(curve.trained for curve in curves):
        unknown = ", ".join(curve.label for curve in curves if curve.trained is None)
        figure.supxlabel(HOLLOW + (f" (not known: {unknown})" if unknown else ""), fontsize=8, color=SOFT)
    if quantity.scale == "log":
        plain_ticks(axes)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure as PNG, PDF or SVG by the suffix of `path`."""
    path = Path(path)
    figure.savefig(path)
    return path


def _figure(
    curves: Sequence[Curve], original_length: int, title: str | None, subtitle: str | None
) -> tuple[Figure, Axes]:
    figure = blank((8, 4.8))
    axes = tidy(figure.add_subplot())
    lengths = sorted({original_length, *(length for curve in curves for length in curve.lengths)})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    for length in lengths:  # not a second line of the tick: SVG text that a browser sets is centred line by line
        below = [f"{length / original_length:.3g}×"] + ["pre-trained"] * (length == original_length)
        for line, text in enumerate(below):
            axes.annotate(text, (length, 0), xycoords=axes.get_xaxis_transform(), xytext=(0, -19 - 13 * line),
                          textcoords="offset points", ha="center", va="top", annotation_clip=False)  # fmt: skip
    axes.axvline(original_length, color=MARK, linewidth=1, linestyle=":", zorder=0)
    axes.set_xlabel("context length in tokens, and in multiples of the pre-trained length", labelpad=31)
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22 if subtitle else 8)
    if subtitle:
        axes.annotate(subtitle, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
                      fontsize=9, color=SOFT)  # fmt: skip
    return figure, axes


def blank(size: tuple[float, float], pad: float = 0.04) -> Figure:
    """An empty figure of `size` inches, with `pad` inches around each of its axes; no text in it is a formula."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text

    class Plain(Figure):
        def draw(self, renderer: Any) -> None:
            for text in self.findobj(Text):  # names that users chose: `$\foo$` is no formula, and a wrong one fails
                text.set(parse_math=False)
            super().draw(renderer)

    # Not pyplot: it keeps figures alive and, on machines with a display, picks a backend that needs one.
    figure = Plain(figsize=size, dpi=150, layout=ConstrainedLayoutEngine(h_pad=pad, w_pad=pad))
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> Axes:
    """No frame, and a pale grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _lines(axes: Axes, curves: Sequence[Curve], *, bands: bool) -> None:
    for index, curve in enumerate(curves):
        values = [value.value for value in curve.values]
        low, high = ([getattr(value, bound) for value in curve.values] for bound in ("low", "high"))
        style = style_of(index)
        if bands:
            axes.fill_between(curve.lengths, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.plot(curve.lengths, values, linewidth=1.8, **style)
        beyond = [at for at, length in enumerate(curve.lengths) if is_beyond(length, curve.trained)]
        if beyond:  # drawn over the filled signs of the line
            hollow = style | {"linestyle": "none", "markerfacecolor": PAPER}
            axes.plot([curve.lengths[at] for at in beyond], [values[at] for at in beyond], **hollow)
    _label_ends(axes, curves)


def style_of(index: int) -> dict[str, Any]:
    """Colour, dash and sign of a line. After the last colour they start over, dashed."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "markerfacecolor": COLOURS[index % len(COLOURS)],
    }


def _label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Labels beside the right ends of the lines, each with its sign, pushed apart where lines end close together."""
    axes.set_ylim(axes.get_ylim())  # the shares below hold for these limits
    axes.set_xlim(axes.get_xlim())
    to_shares = axes.transData + axes.transAxes.inverted()
    ends = [to_shares.transform((curve.lengths[-1], curve.values[-1].value)) for curve in curves]
    order = sorted(range(len(curves)), key=lambda index: float(ends[index][1]))
    places = spread([float(ends[index][1]) for index in order], LABEL_GAP)
    for index, place in zip(order, places, strict=True):
        style, (x, y) = style_of(index), ends[index]
        shown = {"transform": axes.transAxes, "clip_on": False, "color": style["color"]}
        axes.plot([x, 1.04], [y, place], linewidth=0.6, alpha=0.6, **shown)
        axes.plot([1.04], [place], **style | shown)
        axes.annotate(curves[index].name, (1.04, place), xycoords="axes fraction", xytext=(7, 0),
                      textcoords="offset points", va="center", fontsize=9, color=INK)  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in order, and as near as possible to the `wanted` ones.

    Arguments:
        wanted: ascending. Those that are too close become a block that is centred on their mean (isotonic regression).
    """
    blocks: list[list[float]] = []  # [sum of wanted - offset, count]
    for index, value in enumerate(wanted):
        blocks.append([value - index * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    level = [total / count for total, count in blocks for _ in range(int(count))]
    return [value + index * gap for index, value in enumerate(level)]


def plain_ticks(axes: Axes) -> None:
    """At most eight ticks, at the finest of the usual steps that allows it, with their numbers written out."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICK_STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.yaxis.set_minor_locator(NullLocator())
