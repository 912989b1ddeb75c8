"""What an evaluation leaves behind: its record, its pictures, and tables on the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Showing:
    """How a record is written and shown.

    Arguments:
        whose: the name of the model or the comparison.
        overwrite: replace files that exist.
        as_json: print the record instead of tables.
        name: of the files; None for that of the evaluation.
        quiet: print nothing.
    """

    whose: str
    overwrite: bool
    as_json: bool = False
    name: str | None = None
    quiet: bool = False


def show(record: dict[str, Any], folder: Path, how: Showing) -> None:
    """Write NAME.json and NAME.png to the folder; print tables, or the record."""
    from rich.console import Console

    from longwave.cli.options import print_json
    from longwave.evaluation.records import name_of, quantity_of, write
    from longwave.files import make_folder
    from longwave.report.plots import save
    from longwave.report.views import view

    found = view([record])
    make_folder(folder)
    path = write(folder / f"{how.name or name_of(record)}.json", record, overwrite=how.overwrite)
    about = quantity_of(record).about(record["settings"], record["rows"][0]["lengths"])
    what = about if how.whose.lower() == quantity_of(record).title.lower() else f"{how.whose}: {about}"
    subtitle = " · ".join(part for part in (what, found.note) if part)
    pictures = [save(found.figure(found.title, subtitle), path.with_suffix(".png")), *_along(record, path)]
    if how.as_json:
        print_json(record)
    if how.as_json or how.quiet:
        return
    console = Console()
    heading = ", ".join(part for part in (found.title, what, found.legend) if part)
    console.print(heading, highlight=False, soft_wrap=True)
    for table in found.tables():
        console.print(table)
    console.print(f"written: {path} {' '.join(map(str, pictures))}", highlight=False, soft_wrap=True)


def _along(record: dict[str, Any], path: Path) -> list[Path]:
    """A figure by position in the window at the longest length, if the record has it.

    Without it the figure of an earlier record of that name goes, unless it belongs to another record.
    """
    from longwave.evaluation.quantity import ALONG, BY_POSITION
    from longwave.evaluation.records import quantity_of
    from longwave.report.figures import by_position
    from longwave.report.plots import save

    if quantity_of(record).parts is not BY_POSITION:
        return []
    last = {row["label"]: max(row["lengths"], key=lambda entry: entry["length"]) for row in record["rows"]}
    bins = {label: entry[BY_POSITION.key] for label, entry in last.items() if entry.get(BY_POSITION.key)}
    picture = path.with_name(f"{path.stem}{ALONG}.png")
    if bins:
        return [save(by_position(bins, record["original_length"]), picture)]
    if not picture.with_suffix(".json").exists():  # the figure of a record of that name
        picture.unlink(missing_ok=True)
    return []
