"""A data file, its kind, and how it is opened."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow

from longwave.data.paths import data_suffix

TEXT, PARQUET, ARROW = "text", ".parquet", ".arrow"
JSON_LINES = ".jsonl"
HEAD = 8192  # bytes at the start of a file that tell its kind
COMPRESSIONS = {"gzip": rb"\x1f\x8b", "bz2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\x00", "zstd": rb"\x28\xb5\x2f\xfd"}
OBJECT = re.compile(rb"(\xef\xbb\xbf)?\s*\{\s*\"")  # how an object of JSON starts
POINTER = b"version https://git-lfs.github.com/spec/"


class DataError(ValueError):
    """A file that cannot be read as documents: the file, the reason, what to do."""

    def __init__(self, file: Path, reason: str, remedy: str, at: str = "") -> None:
        super().__init__(f"data {file}{f', {at}:' if at else ''} {reason}. {remedy}")
        self.reason = f"{at}: {reason}" if at else reason


class NotDocuments(DataError):
    """A file that is no data at all. In a folder it is passed over."""


@dataclass(frozen=True)
class Parsing:
    """How files are read.

    Arguments:
        column: the column or the field that holds the texts.
        strict: whether a broken line is refused. Otherwise it is skipped and counted.
    """

    column: str = "text"
    strict: bool = True


@dataclass(frozen=True)
class Source:
    """A file of documents.

    Arguments:
        file: where it is.
        kind: `text`, or the suffix that stands for its format: .jsonl, .ndjson, .jsonlines, .json, .csv, .tsv,
            .parquet, .arrow.
        compression: gzip, bz2, xz, zstd, or empty.
        parsing: how it is read.
    """

    file: Path
    kind: str
    compression: str = ""
    parsing: Parsing = field(default_factory=Parsing)

    @classmethod
    def of(cls, file: Path, parsing: Parsing | None = None) -> Source:
        """The file with its kind. The content tells the kind where it is certain, otherwise the suffix."""
        with file.open("rb") as handle:
            head = handle.read(HEAD)
        how = parsing or Parsing()
        packed = next((name for name, magic in COMPRESSIONS.items() if re.match(magic, head)), "")
        if head.startswith(b"ARROW1\0\0"):
            return cls(file, ARROW, parsing=how)
        if head.startswith(b"PAR1") and _tail(file) == b"PAR1":
            return cls(file, PARQUET, parsing=how)
        found = cls(file, data_suffix(file) or TEXT, packed, how)
        return replace(found, kind=JSON_LINES) if found.kind == TEXT and found._holds_json_lines() else found

    def error(self, reason: str, remedy: str, at: str = "") -> DataError:
        """The error to raise: why this file cannot be read."""
        return DataError(self.file, reason, remedy, at)

    def no_documents(self, reason: str, remedy: str, at: str = "") -> NotDocuments:
        """The error to raise: why this file is no data."""
        return NotDocuments(self.file, reason, remedy, at)

    def head(self) -> bytes:
        """The first bytes of the content, unpacked."""
        with self.opened() as handle:
            return handle.read(HEAD)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The content as bytes, unpacked while it is read."""
        try:
            with _unpacked(self.file, self.compression) as handle:
                yield handle
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not self.compression or getattr(error, "errno", None) is not None:  # the system's, not the content's
                raise
            raise self.error(f"is a damaged {self.compression} file ({error})", "Get the file again.") from None

    @contextmanager
    def opened_text(self, errors: str = "strict") -> Iterator[TextIO]:
        """The content as UTF-8 text without a byte order mark; CRLF and CR are read as LF.

        Arguments:
            errors: what becomes of bytes that are not UTF-8, see `codecs`.
        """
        try:
            with self.opened() as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", errors=errors) as text:
                yield text
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 text (line {self._bad_line()}: {error.reason})"
            raise self.error(reason, "Convert or remove it.") from None

    def _holds_json_lines(self) -> bool:
        """Whether the first line is an object with a text, whatever the file is called."""
        if not OBJECT.match(self.head()):
            return False
        with self.opened() as handle:
            first = next((line for line in handle if line.strip()), b"")
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and isinstance(value.get(self.parsing.column), str)

    def _bad_line(self) -> int:
        """The line that is not UTF-8. Text is decoded in blocks, so the decoder does not know the line."""
        good = 0
        with self.opened() as handle:
            for line in handle:
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    break
                good += 1
        return good + 1


def _unpacked(file: Path, compression: str) -> BinaryIO:
    if compression == "zstd":
        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")))
    openers: dict[str, Callable[..., Any]] = {"": open, "gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return cast(BinaryIO, openers[compression](file, "rb"))


def _tail(file: Path) -> bytes:
    with file.open("rb") as handle:
        handle.seek(-4, io.SEEK_END)
        return handle.read()
