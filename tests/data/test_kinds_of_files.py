"""Every kind of file is read as what it is, or refused in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from longwave.data.documents import read_documents
from longwave.data.json_array import JsonArray, NotJson

TEXTS = ["first \u2028 line", 'a "quoted", text\nof two lines', "x" * 200_000]  # the last: over the limit of `csv`
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def table(delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["id", "text"], *enumerate(TEXTS)])
    return out.getvalue().encode()


def parquet(texts: object = TEXTS) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), out)
    return out.getvalue().to_pybytes()


def arrow(opened: Callable = pyarrow.ipc.new_stream) -> bytes:
    out, rows = pa.BufferOutputStream(), pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    with opened(out, rows.schema) as writer:
        writer.write_table(rows)
    return out.getvalue().to_pybytes()


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return out.getvalue().to_pybytes()


def array(values: object, indent: int | None = None) -> bytes:
    return json.dumps(values, indent=indent).encode()


ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.JSONL", LINES),
        ("a.jsonlines", LINES),
        ("a.json", LINES),
        ("bom.json", b"\xef\xbb\xbf" + array(ROWS)),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("array.json", array(ROWS)),
        ("indented.json", b"\n " + array(ROWS, indent=2)),
        ("strings.json", array(TEXTS)),
        ("a.csv", table(",")),
        ("bom.CSV", b"\xef\xbb\xbf" + table(",")),
        ("a.tsv", table("\t")),
        ("A.PARQUET", parquet()),
        ("named otherwise", parquet()),
        ("binary.parquet", parquet([text.encode() for text in TEXTS])),
        ("dictionary.parquet", parquet(pa.array(TEXTS).dictionary_encode())),
        ("stream.arrow", arrow()),
        ("file.arrow", arrow(pyarrow.ipc.new_file)),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.JSON.GZ", gzip.compress(array(ROWS), mtime=0)),
        ("not packed.jsonl.gz", LINES),
        ("a.csv.bz2", bz2.compress(table(","))),
        ("a.tsv.xz", lzma.compress(table("\t"))),
        ("a.jsonl.zst", zstd(LINES)),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_documents_of_every_kind(tmp_path: Path, name: str, content: bytes, in_folder: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_documents([tmp_path if in_folder else tmp_path / name])["text"]) == TEXTS


def test_one_object_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(array(ROWS[0], indent=2))
    (tmp_path / "b.json").write_bytes(array(ROWS[1]))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"packed\r\ntext", mtime=0))
    assert list(read_documents([tmp_path])["text"]) == [*TEXTS[:2], "packed\ntext"]


SURROGATE = b'{"text": "ok"}\n{"text": "a \\ud800 b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": "a \x00 b"}\n', r"line 2: not JSON \(a NUL byte\)"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": nul', "line 2: not JSON"),
        ("a.jsonl", b'{"text": null}', "line 1: expected an object with a string `text`, got the `text` null"),
        ("a.jsonl", SURROGATE, r"line 2: the text holds \\ud800, half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON .too many brackets"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("a.jsonl", b'{"text": "ok"}\n' * 9000 + b'{"text": "\xff"}\n', "not UTF-8 text .line 9001"),
        ("a.json", b'[{"text": "ok"}, {"text": "\\udc00"}]', r"item 2: the text holds \\udc00"),
        ("a.json", b'[{"text": "ok"}, {"text": null}]', "item 2: .* got the `text` null"),
        ("a.json", b'[{"text": "ok"}, {"text": "cut', "item 2: not JSON"),
        ("a.json", b'[{"text": "ok"}', "item 2: not JSON .* the end of the file"),
        ("a.json", b"[1, 2]", "item 1: .* got int"),
        ("a.json", b'{\n "a": 1,\n "b": 2\n}', "expected an object with a string `text`, got one with a, b"),
        ("a.json", b"{\n oops", "not JSON .*line 2"),
        ("a.csv", b"id,body\n1,x\n", "no column `text`; it has id, body"),
        ("a.csv", b"text\n" + b"one, two\n", "line 2: the row has 2 fields, the first line 1"),
        ("a.csv", b'id,text\n1,"a\nb"\n2,"open\n', "the row from line 4 on: not csv"),
        ("a.csv", b"id,text\n1,a\x00b\n", "line 2: the text holds a NUL byte"),
        ("a.parquet", parquet([["x"]]), r"type list<.*>, which is not text"),
        ("a.parquet", parquet([{"en": "x"}]), r"type struct<.*>, which is not text"),
        ("a.parquet", parquet([1]), "type int64, which is not text"),
        ("a.parquet", parquet([b"ok", b"\xff"]), "row 2: not UTF-8 text"),
        ("a.parquet", b"", "not a parquet file"),
        ("a.arrow", b"no", "not an arrow file"),
        ("a.arrow", arrow()[:100_000], "damaged after row 0"),
        ("a.parquet.gz", gzip.compress(b"x", mtime=0), "Unpack it first"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "damaged gzip file"),
        ("a.txt.xz", lzma.compress(LINES)[:-20], "damaged xz file"),
        ("a.jsonl.zst", zstd(LINES)[:-9], "damaged zstd file"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents([tmp_path / name])
    assert str(caught.value).startswith(f"data {tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_a_parquet_file_damaged_in_the_middle(tmp_path: Path) -> None:
    content = bytearray(parquet([f"{i} " * 400 for i in range(2000)]))
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged after row \d+ ") as caught:
        read_documents([tmp_path / "a.parquet"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_an_array_is_read_in_blocks(block: int) -> None:
    values = [{"text": 'a "b" \\ ]'}, "c,", [1, [2]], {}, "é\n"]
    for text in (json.dumps(values), json.dumps(values, indent=2), " [ ] ", json.dumps(values, ensure_ascii=False)):
        assert list(JsonArray(io.StringIO(text), block)) == json.loads(text)
    numbers = "[1234, 1.5e10, -Infinity, -7, 12.25E-3, [1.5], 0]"
    assert list(JsonArray(io.StringIO(numbers), block)) == json.loads(numbers)
    for bad in ("[1 2]", "[1,]", "[1] 2", "[", "['a']", "{}", ""):
        with pytest.raises(NotJson):
            list(JsonArray(io.StringIO(bad), block))


def test_an_array_that_is_no_json_is_not_read_to_its_end() -> None:
    handle = io.StringIO('[{"a": 1}, {"a" 1}, ' + "0, " * 100_000 + "0]")
    with pytest.raises(NotJson, match="':' delimiter"):
        list(JsonArray(handle, 100))
    assert handle.tell() < 1000
