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
# The start of a .json file that holds documents, however damaged the rest is: strings, or objects with a `text`.
LIKE_DOCUMENTS = re.compile(r"""\s*(\[\s*"|\[?\s*\{.*"text"\s*(:|$))""", re.DOTALL)


class NoText(ValueError):
    """A value of JSON that is no document, and why."""


class BadText(ValueError):
    """A document whose text cannot be read, and why."""


REFUSALS = (NotJson, NoText, BadText)


def json_lines(source: Source) -> Iterator[str]:
    """One document per line: the field `text` of the line's object. Blank lines are no documents."""
    with source.opened_text() as lines:
        yield from _lines(source, enumerate(lines, start=1))


def json_file(source: Source) -> Iterator[str]:
    """Documents of a file named .json: an array of objects or strings, an object per line, or a single object."""
    if _start(source).lstrip().startswith("["):
        yield from _array(source)
        return
    with source.opened_text() as handle:
        lines = enumerate(handle, start=1)
        number, first = next(((number, line) for number, line in lines if line.strip()), (0, "null"))
        try:
            value = parsed(first)
        except NotJson:
            yield _single(source)
            return
        if number:
            yield _document(source, value, f"line {number}")
            yield from _lines(source, lines)


def _lines(source: Source, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        if line.strip():
            try:
                value = parsed(line)
            except NotJson as error:
                raise _refused(source, error, f"line {number}") from None
            yield _document(source, value, f"line {number}")


def _document(source: Source, value: Any, at: str) -> str:
    try:
        return text_of(value)
    except REFUSALS as error:
        raise _refused(source, error, at) from None


def _array(source: Source) -> Iterator[str]:
    read = 0
    with source.opened_text() as handle:
        try:
            for item in JsonArray(handle):
                yield checked(item) if isinstance(item, str) else text_of(item)
                read += 1
        except REFUSALS as error:
            raise _refused(source, error, f"item {read + 1}") from None


def _single(source: Source) -> str:
    with source.opened_text() as handle:
        whole = handle.read()
    try:
        return text_of(parsed(whole))
    except REFUSALS as error:
        raise _refused(source, error, "as a whole") from None


def _refused(source: Source, error: ValueError, at: str) -> DataError:
    """The error to raise: documents that are damaged, or a file that holds none."""
    damaged = isinstance(error, NotJson) and LIKE_DOCUMENTS.match(_start(source))
    return (source.error if damaged or isinstance(error, BadText) else source.no_documents)(str(error), CORRECT, at)


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


def text_of(value: Any) -> str:
    """The field `text` of an object."""
    wanted = "expected an object with a string `text`"
    if not isinstance(value, dict):
        raise NoText(f"{wanted}, got {type(value).__name__}")
    if "text" not in value:
        raise NoText(f"{wanted}, got {shortened(value)}")
    if not isinstance(value["text"], str):
        raise BadText(f"{wanted}, got the `text` {shortened([json.dumps(value['text'])])}")
    return checked(value["text"])


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
