"""Documents in JSON: an object per line, one array, or one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from longwave.data.json_array import JsonArray, NotJson
from longwave.data.kinds import DataError, Source
from longwave.names import shortened

CORRECT = "Correct or remove it."
OTHER_FIELD = "Correct or remove it, or pass the field that holds the texts: --text-column NAME."
# The start of a .json file that holds documents, however damaged the rest is: strings, or objects with a `text`.
LIKE_DOCUMENTS = r"""\s*(\[\s*"|\[?\s*\{.*"%s"\s*(:|$))"""


class NoText(ValueError):
    """A value of JSON that is no document, and why."""


class OtherFields(NoText):
    """An object without a text, and the fields that it has."""


class BadText(ValueError):
    """A document whose text cannot be read, and why."""


REFUSALS = (NotJson, NoText, BadText)


def json_lines(source: Source) -> Iterator[str | DataError]:
    """One document per line: the text of the line's object. Blank lines are no documents."""
    with source.opened_text("surrogateescape") as lines:
        yield from _lines(source, enumerate(lines, start=1))


def json_file(source: Source) -> Iterator[str | DataError]:
    """Documents of a file named .json: an array of objects or strings, an object per line, or a single object."""
    if _start(source).lstrip().startswith("["):
        yield from _array(source)
        return
    with source.opened_text("surrogateescape") as handle:
        lines = enumerate(handle, start=1)
        number, first = next(((number, line) for number, line in lines if line.strip()), (0, "null"))
        try:
            value = parsed(first)
        except NotJson:
            yield _single(source)
            return
        if number:
            yield _document(source, value, first, number)
            yield from _lines(source, lines)


def _lines(source: Source, lines: Iterable[tuple[int, str]]) -> Iterator[str | DataError]:
    for number, line in lines:
        if line.strip():
            try:
                yield _document(source, parsed(line), line, number)
            except NotJson as error:
                yield _bad_bytes(source, line, number) or _refused(source, error, f"line {number}")


def _document(source: Source, value: Any, line: str, number: int) -> str | DataError:
    """The text of a line, whose value is known, or why it has none."""
    if broken := _bad_bytes(source, line, number):
        return broken
    try:
        return text_of(value, source.parsing.column)
    except REFUSALS as error:
        return _refused(source, error, f"line {number}")


def _bad_bytes(source: Source, line: str, number: int) -> DataError | None:
    reason = _not_utf8(line)
    return source.error(f"is not UTF-8 text (line {number}: {reason})", "Convert or remove it.") if reason else None


def _not_utf8(line: str) -> str:
    """Why a line is not UTF-8, as it was decoded with `surrogateescape`; empty if it is."""
    if not line.isascii():
        try:
            line.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            return error.reason
    return ""


def _array(source: Source) -> Iterator[str | DataError]:
    read = 0
    with source.opened_text() as handle:
        try:
            for item in JsonArray(handle):
                read += 1
                try:
                    yield checked(item) if isinstance(item, str) else text_of(item, source.parsing.column)
                except (NoText, BadText) as error:
                    yield _refused(source, error, f"item {read}")
        except NotJson as error:
            raise _refused(source, error, f"item {read + 1}") from None


def _single(source: Source) -> str:
    with source.opened_text() as handle:
        whole = handle.read()
    try:
        return text_of(parsed(whole), source.parsing.column)
    except REFUSALS as error:
        raise _refused(source, error, "as a whole") from None


def _refused(source: Source, error: ValueError, at: str) -> DataError:
    """The error to raise: documents that are damaged, or a file that holds none."""
    like_documents = LIKE_DOCUMENTS % re.escape(source.parsing.column)
    damaged = isinstance(error, NotJson) and re.match(like_documents, _start(source), re.DOTALL)
    remedy = OTHER_FIELD if isinstance(error, OtherFields) else CORRECT
    return (source.error if damaged or isinstance(error, BadText) else source.no_documents)(str(error), remedy, at)


def _start(source: Source) -> str:
    return source.head().decode("utf-8-sig", errors="ignore")


def parsed(text: str) -> Any:
    """The value of `text`, read as JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise NotJson("too many brackets within brackets") from None
    except json.JSONDecodeError as error:
        where = f", line {error.lineno}" if error.lineno > 1 else ""
        raise NotJson("a NUL byte" if "\0" in text else error.msg + where) from None
    except ValueError as error:  # a number with more digits than Python reads
        raise NotJson(error) from None


def text_of(value: Any, column: str = "text") -> str:
    """The field of an object that holds the text."""
    wanted = f"expected an object with a string `{column}`"
    if not isinstance(value, dict):
        raise NoText(f"{wanted}, got {type(value).__name__}")
    if column not in value:
        raise OtherFields(f"{wanted}, got one with {shortened(value)}")
    if not isinstance(value[column], str):
        raise BadText(f"{wanted}, got the `{column}` {shortened([json.dumps(value[column])])}")
    return checked(value[column])


def checked(text: str) -> str:
    """The text, refused if it holds half of a surrogate pair. JSON can write it; UTF-8 and tokenizers cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadText(
            f"the text holds {half}, half of a surrogate pair (character {error.start + 1}); \\ufffd can replace it"
        ) from None
    return text
