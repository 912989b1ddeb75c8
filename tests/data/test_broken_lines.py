"""Broken lines: skipped and counted, or refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longwave.data.documents import documents_of, read_documents
from longwave.data.kinds import Parsing

LENIENT = Parsing(strict=False)
GOOD = b'{"text": "good"}\n' * 3

BROKEN = [
    ("a.jsonl", GOOD + b"{no json\n" + GOOD, "line 4: not JSON"),
    ("a.jsonl", b"no json\n" + GOOD, "line 1: not JSON"),
    ("a.jsonl", GOOD + b'{"text": null}\n', "line 4: expected an object with a string `text`"),
    ("a.jsonl", GOOD + b'{"body": "x"}\n', "line 4: expected .* got one with body"),
    ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "line 4: the text holds .*half of a surrogate"),
    ("a.jsonl", GOOD + b'{"text": "caf\xe9"}\n' + GOOD, r"not UTF-8 text \(line 4: invalid"),
    ("a.json", GOOD + b"{no json\n", "line 4: not JSON"),
    ("a.json", b'["good", {"body": 1}, "good", "good"]', "item 2: expected"),
    ("a.csv", b"id,text\n1,good\n2,a,b\n3,good\n4,good\n", "line 3: the row has 3 fields"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_line_is_skipped_and_told(
    tmp_path: Path, name: str, content: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    for _ in range(2):  # read, and found in the cache
        with caplog.at_level(logging.WARNING, "longwave"):
            caplog.clear()
            found = documents_of([tmp_path], parsing=LENIENT)
        assert set(found.kept["text"]) == {"good"} and found.kept.column_names == ["text"]
        assert len(found.kept) in (3, 6) and len(found.broken) == 1 and found.empty == 0
        (told,) = (record.getMessage() for record in caplog.records)
        assert "skipped 1 broken line of the data" in told and str(file) in told and "--strict" in told
    with pytest.raises(ValueError, match=message):
        read_documents([file])


def test_a_row_of_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"good", b"\xff", b"good"])}), tmp_path / "a.parquet")
    found = documents_of([tmp_path], parsing=LENIENT)
    assert found.kept["text"][:] == ["good", "good"] and "row 2" in found.broken[0]


@pytest.mark.parametrize("lines", [3, 500])
def test_a_file_of_another_kind_is_refused_all_the_same(tmp_path: Path, lines: int) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n' * lines, "utf-8")
    with pytest.raises(ValueError, match=r"line 1: expected .* got one with body, id\. .*--text-column NAME"):
        documents_of([tmp_path], parsing=LENIENT)


@pytest.mark.parametrize("damage", ["gzip", "quote"])
def test_what_ends_a_file_early_is_refused_all_the_same(tmp_path: Path, damage: str) -> None:
    import gzip

    if damage == "gzip":
        file, content = tmp_path / "a.jsonl.gz", gzip.compress(GOOD * 999, mtime=0)[:-20]
    else:
        file, content = tmp_path / "a.csv", b'text\ngood\n"never closed\ngood\n' + b"good\n" * 99
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged gzip|not csv"):
        documents_of([file], parsing=LENIENT)


@pytest.mark.parametrize("name", ["part-00000", "books.txt", "rows.zst", "rows.data.gz"])
def test_json_lines_under_any_name(tmp_path: Path, name: str) -> None:
    import gzip

    content = b'{"id": 1, "text": "' + b"good " * 4000 + b'"}\n{"text": "good"}\n'
    if name.endswith("zst"):
        content = pa.compress(content, codec="zstd", asbytes=True)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    assert [text[:4] for text in read_documents([tmp_path])["text"]] == ["good", "good"]


def test_a_text_that_only_starts_like_json_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": a set}\nmore\n', "utf-8")
    assert len(read_documents([tmp_path])) == 1


def test_texts_in_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": "no"}\n', "utf-8")
    (tmp_path / "b.csv").write_text("body,text\ntwo,no\n", "utf-8")
    (tmp_path / "c").write_text('{"body": "three"}\n', "utf-8")
    pq.write_table(pa.table({"body": ["four"], "text": ["no"]}), tmp_path / "d.parquet")
    assert read_documents([tmp_path], parsing=Parsing("body"))["text"][:] == ["one", "two", "three", "four"]
    with pytest.raises(ValueError, match=r"no column `content`; it has body, text\. .*--text-column NAME"):
        read_documents([tmp_path / "d.parquet"], parsing=Parsing("content"))
