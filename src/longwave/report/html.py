"""One HTML file from records: self-contained, offline, light and dark, readable on a phone.

Pages are for others to keep: no script, no font, no address that a browser would load, and a content security
policy that forbids them. Every value from a file goes through `markup.element`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from longwave.evaluation.writing import counted
from longwave.report.distances import distances
from longwave.report.groups import grouped, told_apart
from longwave.report.markup import Markup, element, join
from longwave.report.sections import Pen, Section, measured, scored, trained
from longwave.report.sources import RecordFile, Training
from longwave.report.spectrum import spectrum
from longwave.report.trajectories import Banded
from longwave.trajectory import Trajectory

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(
    sources: Sequence[RecordFile],
    *,
    trainings: Sequence[Training] = (),
    trajectories: Mapping[str, Trajectory] | None = None,
    banded: Mapping[str, Banded] | None = None,
    title: str = "longwave report",
    refresh: int | None = None,
) -> str:
    """The whole page.

    Arguments:
        sources: records; those of different protocols, data or trained lengths come into sections of their own.
        trainings: a section with curves for each.
        trajectories: drawn together, by name; all of one rope.
        banded: attention methods whose distances are drawn together, by name; all of one L.
        title: of the page.
        refresh: seconds after which a browser reads the page again; None for a page that stays as it is.

    Raises:
        ValueError: if there is nothing to show.
    """
    pen = Pen()
    by_length = [source for source in sources if source.by_length]
    sections = [measured(group, pen) for group in told_apart(grouped(by_length))]
    sections += [scored(source) for source in sources if not source.by_length]
    sections += [trained(training, pen) for training in trainings]
    if trajectories:
        sections.append(spectrum(trajectories, pen, banded or {}))
    if banded:
        sections.append(distances(banded, pen))
    if not sections:
        raise ValueError("nothing to report. Give records, a folder that holds some, or a model.")
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    kinds = [(len(sources), "record"), (len(trainings), "training run"), (len(trajectories or ()), "trajectory")]
    kinds.append((len(banded or ()), "attention method"))
    contents = ", ".join(counted(number, name) for number, name in kinds if number)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        None if refresh is None else element("meta", http_equiv="refresh", content=str(refresh)),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(files("longwave.report").joinpath("report.css").read_text("utf-8"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", f"{contents}; written {written}.", class_="soft")),
        _summary(sections),
        element("main", *(_section(index, section) for index, section in enumerate(sections, 1))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _summary(sections: Sequence[Section]) -> Markup:
    """Contents and headlines in one: each section's name leads there."""
    parts = [
        join(
            element("h3", element("a", section.title, href=f"#s{index}")),
            element("ul", *(element("li", sentence) for sentence in section.summary)),
        )
        for index, section in enumerate(sections, 1)
    ]
    return element("section", element("h2", "In short", id="short"), *parts, aria_labelledby="short")


def _section(index: int, section: Section) -> Markup:
    heading = element("h2", section.title, id=f"s{index}")
    return element("section", heading, section.body, aria_labelledby=f"s{index}")
