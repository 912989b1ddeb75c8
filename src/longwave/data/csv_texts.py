"""Documents in the column `text` of csv and tsv files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from longwave.data.columns import OTHER_COLUMN
from longwave.data.kinds import DataError, Source
from longwave.names import shortened

LONGEST = 2**31 - 1  # characters of a field; the default of `csv` is 131,072, and a document may be a book


def csv_texts(source: Source) -> Iterator[str | DataError]:
    """The text of every row after the first, which names the columns."""
    return _rows(source, ",")


def tsv_texts(source: Source) -> Iterator[str | DataError]:
    """The same, with tabs between the fields."""
    return _rows(source, "\t")


def _rows(source: Source, delimiter: str) -> Iterator[str | DataError]:
    column = source.parsing.column
    csv.field_size_limit(LONGEST)
    with source.opened_text() as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        rows = _checked(source, reader)
        try:
            columns = next(rows, (0, []))[1]
        except (DataError, UnicodeDecodeError):
            if _may_name_text(source):
                raise
            reason = f"has no column `{column}` in its first line, and cannot be read as UTF-8 csv"
            raise source.no_documents(reason, "Correct or remove it.") from None
        if column not in columns:
            raise source.no_documents(f"has no column `{column}`; it has {shortened(columns)}", OTHER_COLUMN)
        place = columns.index(column)
        for line, row in rows:
            if len(row) != len(columns):
                reason = f"the row has {len(row)} fields, the first line {len(columns)}"
                yield source.error(reason, "Quote a text that holds the separator.", f"line {line}")
            elif "\0" in row[place]:
                yield source.error("the text holds a NUL byte", "Remove the byte.", f"line {line}")
            else:
                yield row[place]


def _may_name_text(source: Source) -> bool:
    """Whether the first line, which may be damaged or in another encoding, holds the name of the column."""
    first = source.head().replace(b"\0", b"").lstrip().partition(b"\n")[0]  # UTF-16 has a NUL in every letter
    return re.search(rb"\b%s\b" % re.escape(source.parsing.column.encode()), first) is not None


def _checked(source: Source, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, and the line in which it starts."""
    while True:
        line = reader.line_num + 1  # type: ignore[attr-defined]  # of csv.reader, whose type has no public name
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise source.error(f"not csv ({error})", "Correct the quotes.", f"the row from line {line} on") from None
        if row is None:
            return
        if row:
            yield line, row
