"""The files of documents that paths stand for, and the files that are passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from longwave.data.formats import OFTEN_OTHER, check
from longwave.data.hub import hub_files
from longwave.data.kinds import TEXT, DataError, NotDocuments, Parsing, Source
from longwave.data.paths import check_data, data_suffix, is_hub
from longwave.data.saved import RECORDS, saved_files

# Beside data files, files with these names are about the data: cards, licences, scripts, settings.
CARDS = re.compile(r"(readme|licen[cs]es?)(?![a-z])")  # also LICENSE-MIT, README_zh.md; not "Licensed to Kill"
ABOUT = {"copying", "notice", "citation", "changelog", "contributing", "requirements"}
ABOUT_SUFFIXES = {".py", ".sh", ".ipynb", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".bib", ".cff"}
HIDDEN, ABOUT_DATA = "hidden", "about the data beside it"
EXPECTED = (ABOUT_DATA, HIDDEN)  # reasons that a message names last: no user misses such files
NAMED = 5  # number of passed-over files that a message names


@dataclass
class Found:
    """Sources in the order in which they are read, and the reason for every path that is passed over."""

    sources: list[Source] = field(default_factory=list)
    passed: dict[Path, str] = field(default_factory=dict)

    def passed_over(self) -> str:
        """Some paths passed over, each with its reason, and the number of further paths."""
        ordered = sorted(self.passed.items(), key=lambda each: EXPECTED.index(each[1]) if each[1] in EXPECTED else -1)
        named = [f"{path} ({reason})" for path, reason in ordered[:NAMED]]
        more = len(self.passed) - NAMED
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def find(paths: Iterable[Path | str], parsing: Parsing | None = None) -> Found:
    """The sources that `paths` stand for; a folder stands for all files in it, sorted, folders in it included.
    A data set of the hub stands for its files in the cache.

    A file given by its own path is never passed over. In a folder these are passed over: hidden files; files without
    documents; cards, licences, scripts and settings beside data files. Damaged data are never passed over.

    Arguments:
        parsing: how the files are read; strictly and by the column `text` if None.

    Raises:
        ValueError: for a path that does not exist, for a damaged data file, or if nothing is left.
    """
    named, found = check_data(paths), Found()
    for path in named:
        if is_hub(path):
            inside = Found([Source.of(file, parsing) for file in hub_files(str(path))])
        else:
            inside = Found([Source.of(path, parsing)]) if path.is_file() else _search(path, parsing)
        found.sources += inside.sources
        found.passed |= inside.passed
    if not found.sources:
        where = ", ".join(map(str, named)) or "nothing"
        passed = f" Passed over: {found.passed_over()}." if found.passed else ""
        kinds = "text, JSON lines, JSON, csv, tsv, parquet and arrow, packed or not"
        raise ValueError(f"no file of documents in the data given ({where}). longwave reads {kinds}.{passed}")
    sources = {source.file: source for source in found.sources}
    found.sources = list(sources.values())
    found.passed = {path: reason for path, reason in found.passed.items() if path not in sources}
    return found


def data_files(paths: Iterable[Path | str], parsing: Parsing | None = None) -> list[Path]:
    """The files that `find` finds."""
    return [source.file for source in find(paths, parsing).sources]


def _search(folder: Path, parsing: Parsing | None) -> Found:
    found = Found()
    for path in sorted(_walk(folder, found)):
        if not path.is_file():
            if path.is_symlink() and data_suffix(path):
                raise DataError(path, "is a link to a file that does not exist", "Correct or remove the link.")
            found.passed[path] = "not a file"
            continue
        source = Source.of(path, parsing)
        if source.kind in OFTEN_OTHER:
            try:
                check(source)
            except NotDocuments as error:
                found.passed[path] = error.reason
                continue
        found.sources.append(source)
    _pass_over_about(found)
    found.passed = dict(sorted(found.passed.items()))
    return found


def _walk(folder: Path, found: Found) -> Iterator[Path]:
    """Every file that may be a source. Hidden folders and links to folders are not entered."""
    for name, folders, files in os.walk(folder, onerror=_raise):
        here = Path(name)
        for inner in [*folders, *files]:
            if inner.startswith(".") or inner == "__pycache__":
                found.passed[here / inner] = HIDDEN
        for inner in folders:
            if (here / inner).is_symlink():
                found.passed.setdefault(here / inner, "a link to a folder")
        folders[:] = [inner for inner in folders if here / inner not in found.passed]
        saved = saved_files(here)
        for file in (here / inner for inner in files if here / inner not in found.passed):
            if saved is None or file in saved:
                yield file
            elif file.name not in RECORDS:
                found.passed[file] = "not part of the saved data set"


def _raise(error: OSError) -> None:
    raise error


def _pass_over_about(found: Found) -> None:
    """Pass over files about the data that lie beside or above the data."""
    data = {parent for source in found.sources if source.kind != TEXT for parent in source.file.parents}
    about = [
        each.file for each in found.sources if each.kind == TEXT and each.file.parent in data and _is_about(each.file)
    ]
    found.passed |= dict.fromkeys(about, ABOUT_DATA)
    found.sources = [source for source in found.sources if source.file not in found.passed]


def _is_about(file: Path) -> bool:
    name = file.name.lower()
    return file.suffix.lower() in ABOUT_SUFFIXES or CARDS.match(name) is not None or name.split(".")[0] in ABOUT
