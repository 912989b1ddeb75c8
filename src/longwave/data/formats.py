"""The documents of a file: one reader per kind."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

from longwave.data.columns import column_texts
from longwave.data.csv_texts import csv_texts, tsv_texts
from longwave.data.json_texts import json_file, json_lines
from longwave.data.kinds import ARROW, JSON_LINES, PARQUET, POINTER, TEXT, DataError, Source


def text_file(source: Source) -> Iterator[str]:
    """The whole file as one document."""
    with source.opened_text() as handle:
        text = handle.read()
    if "\0" in text:  # valid UTF-8, yet no text: an archive or an array that happens to decode
        raise _binary(source)
    yield text


# A reader yields documents, and an error in the place of a line, an item or a row that is broken. It raises an error
# after which it cannot go on.
READERS: dict[str, Callable[[Source], Iterator[str | DataError]]] = {
    TEXT: text_file,
    JSON_LINES: json_lines,
    ".ndjson": json_lines,
    ".jsonlines": json_lines,
    ".json": json_file,
    ".csv": csv_texts,
    ".tsv": tsv_texts,
    PARQUET: column_texts,
    ARROW: column_texts,
}
# Files of these kinds are often no data: pictures, settings, tables of numbers.
OFTEN_OTHER = {TEXT, ".json", ".csv", ".tsv"}


MANY = 100  # broken lines after which a file need not be read to its end to be refused


def texts(source: Source) -> Iterator[str]:
    """The documents of a file, empty documents included. They are read one by one as they are asked for.

    Raises:
        DataError: at the place where the file cannot be read.
    """
    return (each for each in read(source) if isinstance(each, str))


def read(source: Source) -> Iterator[str | DataError]:
    """The documents of a file, and an error in the place of each broken line. Strict parsing raises this error.

    Raises:
        DataError: where the file cannot be read further, and for a file with more broken lines than good ones.
    """
    if source.head().startswith(POINTER):
        refused = source.no_documents if source.kind == TEXT else source.error  # a picture may stay a pointer
        raise refused("is a pointer of Git LFS, not the data", "Run `git lfs pull` in its folder.")
    good, broken, first = 0, 0, None
    for each in READERS[source.kind](source):
        if isinstance(each, str):
            good += 1
        elif source.parsing.strict:
            raise each
        else:
            broken, first = broken + 1, first or each
            if broken > max(good, MANY):
                raise first
        yield each
    if first is not None and broken > good:
        raise first


def check(source: Source) -> None:
    """Read only the part of a file that tells whether it holds documents.

    Raises:
        NotDocuments: if the file is no data.
        DataError: if the file is data, and cannot be read.
    """
    if source.kind != TEXT:
        next(texts(source), None)
        return
    head = source.head()
    if head.startswith(POINTER):
        next(texts(source))
    # Bytes that are not UTF-8, or begin as UTF-16, may be a book all the same: reading it is an error.
    if b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _binary(source)


def _binary(source: Source) -> Exception:
    return source.no_documents("is not text: it holds NUL bytes", "Convert or remove it.")
