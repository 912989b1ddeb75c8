"""HTML built from elements: every string is escaped on its way in, so no value can become markup."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

VOID = ("meta", "link", "br", "wbr")


class Markup(str):
    """HTML as it is; any other string is text."""


Content = str | float | None


def element(tag: str, /, *children: Content, **attributes: str | int | bool | None) -> Markup:
    """`<tag attribute="...">children</tag>`.

    Arguments:
        children: `Markup` as it is, anything else as escaped text; None is left out.
        attributes: `class_` for class, `_` for `-`; True writes the bare name, None and False leave it out.
    """
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{tag}{shown}>" if tag in VOID else f"<{tag}{shown}>{join(*children)}</{tag}>")


def join(*children: Content) -> Markup:
    """Children one after another, without an element around them."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in children if c is not None))


def scroll(content: Markup, *, label: str) -> Markup:
    """A box that scrolls sideways, with the keyboard too."""
    return element("div", content, class_="scroll", role="group", aria_label=label, tabindex=0)


def table(caption: str, head: Sequence[Markup], rows: Sequence[Markup]) -> Markup:
    """A table of header cells and `tr` elements, in a box of its own."""
    parts = element("thead", element("tr", *head)), element("tbody", *rows)
    return scroll(element("table", element("caption", caption), *parts), label=caption)
