"""The lengths of documents: a histogram in the terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BAR = 30  # characters of the longest bar


def bars(source: Mapping[str, Any], unit: str) -> list[tuple[str, str, str]]:
    """A line for each length: from which on, how many documents, and a bar for the share of all tokens."""
    most = max(1, *(each[unit] for each in source["histogram"]))
    total = max(1, source[unit])
    return [
        (
            f"{each['from']:,}",
            f"{each['documents']:,}",
            f"{'█' * round(BAR * each[unit] / most)} {100 * each[unit] / total:.1f} %",
        )
        for each in source["histogram"]
    ]


def draw(sources: Sequence[Mapping[str, Any]], unit: str, train_length: int | None, file: Path) -> None:
    """Draw the share of all tokens (or characters) against the length of their documents, a line for each source."""
    from longwave.report.plots import COLOURS, blank

    figure = blank((7.0, 4.0), pad=0.5)
    axes = figure.add_subplot(1, 1, 1)
    for source, colour in zip(sources, COLOURS * len(sources), strict=False):
        shares = [100 * each[unit] / max(1, source[unit]) for each in source["histogram"]]
        starts = [each["from"] for each in source["histogram"]]
        axes.stairs(shares, [*starts, 2 * starts[-1]], color=colour, label=source["source"], linewidth=1.8)
    if train_length is not None:
        axes.axvline(train_length, color="0.5", linestyle="--", label=f"train length {train_length:,}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel=f"length of a document in {unit}", ylabel=f"% of all {unit}", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)
