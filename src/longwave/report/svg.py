"""A matplotlib figure as SVG inside an HTML page, in the page's colours and font, light or dark."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from longwave.report.markup import Markup
from longwave.report.plots import COLOURS, GRID, INK, MARK, PAPER, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What report.css defines twice, for light and for dark.
VARIABLES = {colour.lower(): f"c{index}" for index, colour in enumerate(COLOURS, 1)} | {
    MARK: "mark", GRID: "grid", SOFT: "soft", INK: "ink", PAPER: "paper"
}  # fmt: skip


METADATA = ("Creator", "Date", "Format", "Type")  # left out: they hold web addresses


def inline(figure: Figure, name: str, description: str) -> Markup:
    """The `<svg>` element of a figure: text as text, colours as CSS variables, nothing that reaches outside.

    Arguments:
        name: put before each id: two figures of a page must not share one.
        description: of the figure, for a screen reader.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "longwave"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
    text = buffer.getvalue()
    _, _, width, height = re.search(r'viewBox="([^"]*)"', text)[1].split()  # type: ignore[index]
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    # matplotlib's style sheet would apply to the whole page; report.css has its rule for figures.
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"font: (\d[\d.]*px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0], body)
    label = escape(description)
    return Markup(f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">{_squeeze(body)}</svg>')


def _squeeze(body: str) -> str:
    return re.sub(r">\s+<", "><", body).strip()
