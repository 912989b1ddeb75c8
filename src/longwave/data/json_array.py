"""A JSON array whose values are read one at a time, so that the array may be larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

BLOCK = 1 << 20  # number of characters read at a time
CUT = 16  # characters: longer than any `-Infinity`, escape or end of a number that a block may cut
NOT_BLANK = re.compile(r"[^ \t\n\r]")


class NotJson(ValueError):
    """Text that is not JSON, and why."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"not JSON ({reason})")


class JsonArray:
    """Iterates over the values of the array in `handle`.

    Raises:
        NotJson: where the array is not JSON.
    """

    def __init__(self, handle: TextIO, block: int = BLOCK) -> None:
        self.handle, self.block = handle, block
        self.text, self.at = "", 0
        self.decode = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[Any]:
        self._expect("[")
        while self._mark() != "]":
            yield self._value()
            if self._mark() != "]":
                self._expect(",")
                if self._mark() == "]":
                    raise NotJson("a comma before the end of the array")
        self._expect("]")
        if found := self._mark():
            raise NotJson(f"{found!r} follows the end of the array")

    def _expect(self, wanted: str) -> None:
        if (found := self._mark()) != wanted:
            raise NotJson(f"{wanted!r} expected, got {repr(found) if found else 'the end of the file'}")
        self.at += 1

    def _mark(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while not (match := NOT_BLANK.search(self.text, self.at)):
            self.at = len(self.text)
            if not self._more():
                return ""
        self.at = match.start()
        return match.group()

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decode(self.text, start := self.at)
            except ValueError as error:
                if not self._may_be_cut(error) or not self._more():
                    raise NotJson(getattr(error, "msg", error)) from None
                continue
            except RecursionError:
                raise NotJson("too many brackets within brackets") from None
            # The number 12 at the end of a block may be the start of 12.5e9.
            if not isinstance(value, int | float) or end < len(self.text) - CUT or not self._more():
                self.at += end - start
                return value

    def _may_be_cut(self, error: ValueError) -> bool:
        """Whether the text read so far may only lack its end."""
        if not isinstance(error, json.JSONDecodeError):  # a number with more digits than Python reads
            return False
        return error.pos >= len(self.text) - CUT or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        """Read on, twice as much as before, so that a long value is not tried often."""
        read = self.handle.read(max(self.block, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + read, 0
        return bool(read)
