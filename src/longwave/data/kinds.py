"""A data file, its kind, and how it is opened."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow

from longwave.data.paths import data_suffix

TEXT, PARQUET, ARROW = "text", ".parquet", ".arrow"
HEAD = 8192  # bytes at the start of a file that tell its kind
COMPRESSIONS = {"gzip": rb"\x1f\x8b", "bz2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\x00", "zstd": rb"\x28\xb5\x2f\xfd"}
POINTER = b"version https://git-lfs.github.com/spec/"


class DataError(ValueError):
    """A file that cannot be read as documents: the file, the reason, what to do."""

    def __init__(self, file: Path, reason: str, remedy: str, at: str = "") -> None:
        super().__init__(f"data {file}{f', {at}:' if at else ''} {reason}. {remedy}")
        self.reason = f"{at}: {reason}" if at else reason


class NotDocuments(DataError):
    """A file that is no data at all. In a folder it is passed over."""


@dataclass(frozen=True)
class Source:
    """A file of documents.

    Arguments:
        file: where it is.
        kind: `text`, or the suffix that stands for its format: .jsonl, .ndjson, .jsonlines, .json, .csv, .tsv,
            .parquet, .arrow.
        compression: gzip, bz2, xz, zstd, or empty.
    """

    file: Path
    kind: str
    compression: str = ""

    @classmethod
    def of(cls, file: Path) -> Source:
        """The file with its kind. The content tells the kind where it is certain, otherwise the suffix."""
        with file.open("rb") as handle:
            head = handle.read(HEAD)
        packed = next((name for name, magic in COMPRESSIONS.items() if re.match(magic, head)), "")
        if head.startswith(b"ARROW1\0\0"):
            return cls(file, ARROW)
        if head.startswith(b"PAR1") and _tail(file) == b"PAR1":
            return cls(file, PARQUET)
        return cls(file, data_suffix(file) or TEXT, packed)

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
    def opened_text(self) -> Iterator[TextIO]:
        """The content as UTF-8 text without a byte order mark; CRLF and CR are read as LF."""
        try:
            with self.opened() as handle, io.TextIOWrapper(handle, encoding="utf-8-sig") as text:
                yield text
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 text (line {self._bad_line()}: {error.reason})"
            raise self.error(reason, "Convert or remove it.") from None

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
