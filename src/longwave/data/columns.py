"""Parquet and arrow files: documents in the column `text`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from longwave.data.kinds import PARQUET, DataError, Source
from longwave.errors import first_line
from longwave.names import shortened

ROWS = 256  # number of rows decoded at a time: a row may be a book
FAILURES = (pyarrow.ArrowException, OSError)  # errors of a damaged file
OTHER_COLUMN = "Pass the column that holds the texts: --text-column NAME."
AGAIN = "Get the file again."


def column_texts(source: Source) -> Iterator[str | DataError]:
    """The column of texts of a parquet or arrow file."""
    with opened_table(source) as table:
        _require_text(source, table.schema)
        yield from _values(source, table.batches([source.parsing.column]))


@dataclass(frozen=True)
class Table:
    """An open file of columns: its schema, and its rows in batches of the columns that are named."""

    schema: pyarrow.Schema
    batches: Callable[[list[str]], Iterator[pyarrow.RecordBatch]]


@contextmanager
def opened_table(source: Source) -> Iterator[Table]:
    """A parquet file, or an arrow file in the format of files or of streams (`datasets.save_to_disk`).

    Raises:
        DataError: if it is none.
    """
    if source.compression:
        raise source.error(f"is a {source.kind} file inside a {source.compression} file", "Unpack it first.")
    if source.kind == PARQUET:
        try:
            parquet = pyarrow.parquet.ParquetFile(source.file)
        except FAILURES as error:
            raise source.error(f"is not a parquet file ({first_line(error)})", AGAIN) from None
        with parquet:
            yield Table(parquet.schema_arrow, lambda names: parquet.iter_batches(batch_size=ROWS, columns=names))
        return
    is_file = source.head().startswith(b"ARROW1")
    try:
        mapped = pyarrow.memory_map(str(source.file))
        arrow = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(mapped)
    except FAILURES as error:
        raise source.error(f"is not an arrow file ({first_line(error)})", AGAIN) from None
    batches = (arrow.get_batch(i) for i in range(arrow.num_record_batches)) if is_file else iter(arrow)
    yield Table(arrow.schema, lambda names: (batch.select(names) for batch in batches))


def _require_text(source: Source, schema: pyarrow.Schema) -> None:
    column = source.parsing.column
    if column not in schema.names:
        raise source.error(f"has no column `{column}`; it has {shortened(schema.names)}", OTHER_COLUMN)
    given = schema.field(column).type
    plain = given.value_type if pyarrow.types.is_dictionary(given) else given
    if str(plain) not in {"string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"}:
        reason = f"has a column `{column}` of type {shortened([given])}, which is not text"
        raise source.error(reason, "Write it as a column of strings.")


def _values(source: Source, batches: Iterator[pyarrow.RecordBatch]) -> Iterator[str | DataError]:
    """Every value of the first column; a missing value is an empty text. An error stands for a value that is broken.

    Bytes are decoded here for two reasons. Writers without a type for strings (Spark, Impala) mark UTF-8 text as
    binary. And pyarrow does not say which string is not UTF-8.
    """
    row = 0
    while True:
        try:
            batch = next(batches, None)
            values = () if batch is None else batch.column(0).cast(pyarrow.large_binary())
        except FAILURES as error:
            raise source.error(f"is damaged after row {row} ({first_line(error)})", AGAIN) from None
        if batch is None:
            return
        for value in values:
            row += 1
            try:
                yield (value.as_py() or b"").decode("utf-8")
            except UnicodeDecodeError as error:
                yield source.error(f"not UTF-8 text ({error.reason})", "Convert or remove it.", f"row {row}")
