"""Figures of a training run beside its curves: which t it drew, and how perplexity went on held-out text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longwave.report.figures import WIDTH, legend
from longwave.report.plots import COLOURS, blank, plain_ticks, style_of, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 24


def drawn_factors(factors: Sequence[float]) -> Figure:
    """A histogram of t over the micro-batches of a run; bins are equally wide in ln t."""
    figure = blank((WIDTH, 2.6))
    axes = tidy(figure.add_subplot())
    least, most = min(factors), max(factors)
    ratio = math.log(most / least) if most > least else math.log(2)
    start = least if most > least else least / math.sqrt(2)
    edges = [start * math.exp(ratio * k / BINS) for k in range(BINS + 1)]
    edges[-1] = max(edges[-1], most)
    axes.hist(factors, bins=edges, color=COLOURS[0], alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("length factor t")
    axes.set_ylabel("micro-batches")
    return figure


def perplexities(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Perplexity on held-out text by optimizer step, a line for each length."""
    figure = blank((WIDTH, 3.4))
    axes = tidy(figure.add_subplot())
    lengths = sorted({entry["length"] for row in rows for entry in row["lengths"]})
    for index, length in enumerate(lengths):
        points = [(row["step"], e["ppl"]) for row in rows for e in row["lengths"] if e["length"] == length]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linewidth=1.6, label=f"{length:,}", **style_of(index))
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("perplexity")
    legend(axes)
    return figure
