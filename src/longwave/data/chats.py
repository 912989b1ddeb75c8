"""Chats in JSON, parquet and arrow: a column `messages`, or `conversations` as ShareGPT writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from longwave.data.bars import progress_bars
from longwave.data.columns import AGAIN, FAILURES, opened_table
from longwave.data.json_array import JsonArray, NotJson
from longwave.data.json_texts import parsed
from longwave.data.kinds import ARROW, PARQUET, Parsing, Source
from longwave.data.sources import find
from longwave.errors import first_line
from longwave.files import sha256
from longwave.names import shortened

COLUMNS = ("messages", "conversations")
TABLES = (PARQUET, ARROW)
JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")
ROLES = {  # of ShareGPT
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
FEATURES = datasets.Features({"chat": datasets.Value("string"), "at": datasets.Value("string")})
READING = 1  # part of the cache key: raise it when chats are read in another way than before
WANTED = "expected a list of messages, each with a `role` and a `content`"


def hold_chats(paths: Iterable[Path | str], parsing: Parsing | None = None) -> bool:
    """Whether the data are chats: their first row has a column of messages, and no `text`.

    Data whose texts have another column by their `parsing` are none.

    Raises:
        ValueError: for chats beside other data.
    """
    if parsing is not None and parsing.column != Parsing().column:
        return False
    sources = find(paths, parsing).sources
    chats = [source for source in sources if _is_chat(source)]
    if chats and len(chats) < len(sources):
        other = next(source for source in sources if source not in chats)
        raise ValueError(
            f"data {chats[0].file} holds chats, and {other.file} holds none. Train on one kind, and then on the other."
        )
    return bool(chats)


def read_chats(paths: Iterable[Path | str], hashes: Mapping[str, str] | None = None) -> datasets.Dataset:
    """Chats as a `datasets.Dataset`: each as JSON {"messages": [...], "tools": ...}, and where it stands.

    Arguments:
        hashes: what `data_hashes` of the files returned.

    Raises:
        ValueError: naming the file and the row that is no chat, or that has no message of the assistant.
    """
    sources = find(paths).sources
    found = {} if hashes is None else hashes
    keys = [found.get(str(source.file)) or sha256(source.file) for source in sources]
    arguments = {"sources": sources, "hashes": keys, "reading": READING}
    with progress_bars(False):
        try:
            return datasets.Dataset.from_generator(_rows, features=FEATURES, gen_kwargs=arguments)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError | OSError):  # longwave's, from deep inside the builder
                raise error.__cause__ from None
            raise


def _rows(sources: Iterable[Source], hashes: object = (), reading: int = READING) -> Iterator[dict[str, str]]:
    """Chats of `sources`. The other arguments only make the cache key depend on the contents and on this code."""
    for source in sources:
        for at, record in _records(source):
            try:
                chat = chat_of(record)
            except ValueError as error:
                raise source.error(str(error), "Correct or remove it.", at) from None
            yield {"chat": json.dumps(chat), "at": f"{source.file}, {at}"}


def chat_of(record: Any) -> dict[str, Any]:
    """The messages, and the tools, of a row of data.

    Raises:
        ValueError: for a row that is no chat.
    """
    column = next((name for name in COLUMNS if isinstance(record, Mapping) and record.get(name) is not None), None)
    if column is None:
        has = shortened(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"expected an object with `messages`, got {has}")
    given = record[column]
    if not (isinstance(given, Sequence) and given and all(isinstance(each, Mapping) for each in given)):
        raise ValueError(WANTED)
    messages = [_message(each) for each in given]
    if not any(each["role"] == "assistant" for each in messages):
        raise ValueError("the chat has no message of the assistant, and so nothing to learn")
    tools = record.get("tools")
    return {
        "messages": messages,
        **({"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}),
    }


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    if "from" in given and "value" in given:
        if given["from"] not in ROLES:
            raise ValueError(f"a message is from {given['from']!r}, which is none of {', '.join(ROLES)}")
        return {"role": ROLES[given["from"]], "content": given["value"]}
    if not isinstance(given.get("role"), str) or not ("content" in given or given.get("tool_calls")):
        raise ValueError(f"{WANTED}, got one with {shortened(given)}")
    return {name: value for name, value in given.items() if value is not None or name == "content"}


def _is_chat(source: Source) -> bool:
    if source.kind not in (*JSON, *TABLES):
        return False
    try:
        _, first = next(_records(source), ("", None))
    except ValueError:  # damaged: whoever reads it says so
        return False
    return isinstance(first, Mapping) and "text" not in first and any(first.get(name) for name in COLUMNS)


def _records(source: Source) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place."""
    if source.kind in TABLES:
        yield from _of_columns(source)
        return
    with source.opened_text() as handle:
        array = source.kind == ".json" and source.head().lstrip().startswith(b"[")
        try:
            if array:
                yield from ((f"item {number}", item) for number, item in enumerate(JsonArray(handle), start=1))
            else:
                for number, line in enumerate(handle, start=1):
                    if line.strip():
                        at = f"line {number}"
                        yield at, parsed(line)
        except NotJson as error:
            raise source.error(str(error), "Correct or remove it.", "" if array else at) from None


def _of_columns(source: Source) -> Iterator[tuple[str, Any]]:
    number = 0
    with opened_table(source) as table:
        rows = table.batches([name for name in (*COLUMNS, "tools", "text") if name in table.schema.names])
        try:
            for batch in rows:
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
        except FAILURES as error:
            raise source.error(f"is damaged after row {number} ({first_line(error)})", AGAIN) from None
