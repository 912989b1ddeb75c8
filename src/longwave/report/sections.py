"""What stands below one heading of a report: figures, a table, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longwave.report.figures as draw
from longwave.evaluation.curves import Curve
from longwave.evaluation.quantity import BY_DEPTH, BY_POSITION
from longwave.evaluation.windows import scores_same_targets
from longwave.evaluation.writing import counted
from longwave.report.extrapolation import LONGEST, SIGN, is_known, sign, window_text
from longwave.report.groups import Group
from longwave.report.markup import Markup, element, join, scroll, table
from longwave.report.plots import COLOURS, curve_figure
from longwave.report.provenance import made, made_training
from longwave.report.runs import drawn_factors, perplexities
from longwave.report.sources import RecordFile, Training
from longwave.report.summary import summary
from longwave.report.svg import inline
from longwave.report.tables import score_text, tasks_window


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Arguments:
        title: heading, and entry of the contents.
        summary: sentences for the top of the page.
        body: what is below the heading.
    """

    title: str
    summary: Sequence[str]
    body: Markup


class Pen:
    """Figures of one page: each with ids of its own, in a box that scrolls where the screen is narrow."""

    def __init__(self) -> None:
        self.count = 0

    def figure(self, figure: Any, description: str, caption: str, rows: Sequence[str] = ()) -> Markup:
        """The element of a figure.

        Arguments:
            description: of the figure, for a screen reader.
            caption: below the figure.
            rows: names above the figure, which stay when the labels in it are scrolled away.
        """
        self.count += 1
        box = scroll(inline(figure, f"f{self.count}", description), label=f"Figure {self.count}")
        names = [element("span", row, class_=f"k{index % len(COLOURS) + 1}") for index, row in enumerate(rows)]
        key = element("p", *names, class_="key", aria_hidden="true") if rows else None
        return element("figure", key, box, element("figcaption", f"Figure {self.count}. {caption}"))


def measured(group: Group, pen: Pen) -> Section:
    quantity, original, labels = group.quantity, group.original_length, ", ".join(group.rows)
    what, better = quantity.caption, "Lower is better" if quantity.lower_is_better else "Higher is better"
    lengths = f"{group.lengths[0]:,} to {group.lengths[-1]:,} tokens"
    parts = [
        element("p", f"Pre-trained length L: {original:,} tokens. {_settings(group)}", class_="soft"),
        pen.figure(
            curve_figure(group.curves, quantity, original_length=original),
            f"{what} at {lengths} for {labels}; the table below has the values.",
            f"{what} against context length, with 95 % intervals. {better}.{_mark(group, 'Hollow')}",
            list(group.rows),
        ),
        _table(group, f"{what}, 95 % interval below; the best of each length in bold.{_mark(group)}"),
        *(PLACES[quantity.parts](group, pen) if quantity.parts is not None else ()),
        *(made(source) for source in group.sources),
    ]
    return Section(group.title, summary(group), join(*parts))


def _settings(group: Group) -> str:
    """The settings that all records of a group share, and what same-targets means for the columns."""
    settings = group.settings
    shown = {key: "default" if value is None else f"{value:,}" if isinstance(value, int) else value
             for key, value in settings.items()}  # fmt: skip
    text = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in shown.items())
    same = " Every length is scored on the same tokens." * scores_same_targets(settings)
    return f"{text[:1].upper()}{text[1:]}.{same}"


def _mark(group: Group, how: str = f"A number with {SIGN}") -> str:
    """What the mark of extrapolation means, where any row is known to have one."""
    if not is_known(curve.trained for curve in group.curves):
        return ""
    return f" {how}: extrapolation, longer than {LONGEST}."


def _table(group: Group, caption: str) -> Markup:
    head, known = [element("th", "row", scope="col")], is_known(curve.trained for curve in group.curves)
    if known:
        head.append(element("th", "trained", element("br"), "on", scope="col"))
    for length in group.lengths:
        head.append(element("th", group.ratio(length), element("br"), f"{length:,}", scope="col"))
    best, body = {length: group.best(length) for length in group.lengths}, []
    for curve in group.curves:
        cells = [_cell(group, curve, length, curve.label in best[length]) for length in group.lengths]
        if known:
            window = window_text(curve.trained, group.original_length).replace("x", "×")
            cells.insert(0, element("td", window if curve.trained is None else f"≤ {window}"))
        body.append(element("tr", element("th", curve.name, scope="row"), *cells))
    return table(caption, head, body)


def _cell(group: Group, curve: Curve, length: int, best: bool) -> Markup:
    value = curve.at().get(length)
    if value is None:
        return element("td", "–")
    between = element("small", group.quantity.bounds(value)) if value.low != value.high else None
    text = group.quantity.text(value.value) + sign(length, curve.trained)
    return element("td", text, between, class_="best" if best else None)


def _positions(group: Group, pen: Pen) -> list[Markup]:
    """Loss by position, a figure for each length that has it; the longest first, the others folded away."""
    found = []
    for length in reversed(group.lengths):
        bins = {
            label: entry["by_position"]
            for label, runs in group.rows.items()
            for entry in runs[0]["lengths"]
            if entry["length"] == length and entry.get("by_position")
        }
        if bins:
            several = any(len(group.rows[label]) > 1 for label in bins)
            caption = f"Loss by position in windows of {length:,} tokens{', first run of each row' * several}."
            figure = draw.by_position(bins, group.original_length)
            found.append(
                pen.figure(figure, f"Loss by position at {length:,} tokens for {', '.join(bins)}.", caption, list(bins))
            )
    if len(found) > 1:
        found[1:] = [element("details", element("summary", "Loss by position at shorter lengths"), *found[1:])]
    return found


def _depths(group: Group, pen: Pen) -> list[Markup]:
    rows = {label: runs[0]["lengths"] for label, runs in group.rows.items() if runs[0]["lengths"][0]["by_depth"]}
    if not rows:
        return []
    several = " First run of each row." * any(len(runs) > 1 for runs in group.rows.values())
    what = group.quantity.caption
    caption = f"{what} in % by context length and depth, from the start (0) to the end (100).{several}"
    trained = {curve.label: curve.trained for curve in group.curves}
    caption += f" {SIGN}: longer than {LONGEST}." * is_known(trained.values())
    return [pen.figure(draw.by_depth(rows, trained), f"{what} by length and depth for {', '.join(rows)}.", caption)]


PLACES = {BY_POSITION: _positions, BY_DEPTH: _depths}


def scored(source: RecordFile) -> Section:
    """The tasks of one record."""
    rows, name = source.record["rows"], Path(str(source.record["model"].get("path", source.path))).name
    head = [element("th", title, scope="col", class_="text") for title in ("task", "metric")]
    head += [element("th", title, scope="col") for title in ("value", "samples")]
    body = []
    for row in rows:
        cells = (element("td", row["metric"], class_="text"), element("td", score_text(row)))
        body.append(element("tr", element("th", row["task"], scope="row"), *cells, element("td", str(row["samples"]))))
    window = tasks_window(rows)
    caption = "Value of each metric ± its standard error over samples." + f" {window[:1].upper()}{window[1:]}." * bool(
        window
    )
    summary = [f"{row['task']}: {score_text(row)} {row['metric']}." for row in rows[:5]]
    if len(rows) > 5:
        summary.append(f"And {len(rows) - 5} more.")
    return Section(f"{source.title} · {name}", summary, join(table(caption, head, body), made(source)))


def trained(training: Training, pen: Pen) -> Section:
    rows, tail = training.rows, training.rows[-10:]
    mean = sum(row["loss"] for row in tail) / len(tail)
    steps = counted(len(rows), "step")
    tokens = f", {counted(rows[-1]['tokens'], 'token')}" if "tokens" in rows[-1] else ""
    losses = f"Loss {rows[0]['loss']:.3f} at the first step, {mean:.3f} as the mean of the last {len(tail)}."
    summary = [f"{steps}{tokens}. {losses}"]
    caption = (
        "Loss and norms of the gradients before clipping, of each step at its own t (pale) and their running means; "
        "learning rates."
    )
    figures = [pen.figure(draw.training(rows), f"Training curves. {summary[0]}", caption)]
    if training.factors:
        low, high = min(training.factors), max(training.factors)
        caption = f"The length factors t that were drawn, {low:.3g} to {high:.3g}, one for each micro-batch."
        figures.append(pen.figure(drawn_factors(training.factors), caption, caption))
    if training.evaluated:
        last = training.evaluated[-1]
        values = ", ".join(f"{entry['ppl']:.3f} at {entry['length']:,}" for entry in last["lengths"])
        summary.append(f"Perplexity on held-out text after {counted(last['step'], 'step')}: {values} tokens.")
        caption = "Perplexity on held-out text while training, for each length in tokens."
        figures.append(pen.figure(perplexities(training.evaluated), summary[-1], caption))
    return Section(f"Training · {training.path.parent.name}", summary, join(*figures, made_training(training)))
