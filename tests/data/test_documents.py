"""Documents, their hashes, and the token stream."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longwave.data.documents import read_documents
from longwave.data.formats import texts
from longwave.data.hashes import data_hashes
from longwave.data.kinds import Source
from longwave.data.sources import data_files
from longwave.data.tokens import stream_and_starts, token_stream


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Five documents in four formats, with things beside them that are no text."""
    root = tmp_path / "library"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("first", "utf-8")
    (root / "sub" / "b.md").write_text("sécond", "utf-8")
    (root / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth", "id": 4}\n', "utf-8")
    pq.write_table(pa.table({"text": ["fifth", "", None], "n": [1, 2, 3]}), root / "d.parquet")
    (root / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0" * 100)
    (root / "zeros.bin").write_bytes(bytes(100))
    (root / ".hidden.txt").write_text("not this", "utf-8")
    (root / "empty.txt").write_text(" \n", "utf-8")
    return root


def test_every_format_and_only_text(library: Path) -> None:
    documents = read_documents([library])
    assert documents.column_names == ["text"]
    assert sorted(documents["text"]) == ["fifth", "first", "fourth", "sécond", "third"]


def test_a_file_given_twice_is_read_once(library: Path) -> None:
    assert len(data_files([library, library / "a.txt"])) == len(data_files([library]))


def test_hashes_are_of_the_contents(library: Path) -> None:
    before = data_hashes([library / "a.txt", library / "c.jsonl"])
    assert [len(value) for value in before.values()] == [64, 64]
    (library / "a.txt").write_text("another", "utf-8")
    after = data_hashes([library / "a.txt", library / "c.jsonl"])
    assert [name for name in before if before[name] != after[name]] == [str(library / "a.txt")]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for text in ("before", "after!"):  # as long, and within the resolution of a time stamp
        file.write_text(text, "utf-8")
        assert read_documents([file])["text"][0] == text


def test_a_file_edited_after_it_was_hashed_is_refused(library: Path) -> None:
    hashes = data_hashes([library])
    assert len(read_documents([library], hashes)) == 5
    (library / "a.txt").write_text("edited", "utf-8")
    with pytest.raises(ValueError, match=r"a\.txt has changed since it was hashed"):
        read_documents([library], hashes)
    (library / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.txt has changed since it was hashed"):
        read_documents([library], hashes)


def test_a_line_of_json_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('\n{"text": "one"}\n\n{"text": "two"}\n', "utf-8")
    lines, real = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: lines.append(text) or real(text, **options))
    assert list(texts(Source.of(tmp_path / "a.json"))) == ["one", "two"]
    assert len(lines) == 2


def test_stream_has_an_end_of_text_after_every_document(library: Path, tokenizer) -> None:
    stream = token_stream(read_documents([library / "a.txt", library / "c.jsonl"]), tokenizer)
    assert stream.dtype == torch.long
    pieces = tokenizer.decode(stream).split("\0")  # the byte that the fixture has for end of text
    assert pieces == ["first", "third", "fourth", ""]
    again = token_stream(read_documents([library / "a.txt", library / "c.jsonl"]), tokenizer)
    assert torch.equal(stream, again)


def test_where_each_document_of_a_stream_starts(library: Path, tokenizer) -> None:
    documents = read_documents([library / "a.txt", library / "c.jsonl"])
    stream, starts = stream_and_starts(documents, tokenizer)
    assert torch.equal(stream, token_stream(documents, tokenizer))
    assert starts == [0, 6, 12]
    assert [tokenizer.decode(stream[start : start + 3]) for start in starts] == ["fir", "thi", "fou"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents([tmp_path])["text"][0] == "hello"


@pytest.mark.parametrize(
    ("text", "encoding"), [("Ein schöner Tag. " * 9, "latin-1"), ("天地玄黄", "gbk"), ("Ein schöner Tag.", "utf-16")]
)
def test_a_book_in_another_encoding_is_not_passed_over(library: Path, text: str, encoding: str) -> None:
    (library / "old.txt").write_text(text, encoding)
    with pytest.raises(ValueError, match=r"old\.txt is not UTF-8 text .*Convert or remove it") as caught:
        read_documents([library])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"\xff\xfe\xfa" * 9, "not UTF-8 text"),
        ("bad.npy", b"NUMPY\0\0\0", "holds NUL bytes"),
        ("bad.jsonl", b'{"text": "a"}\nnot json\n', "line 2: not JSON"),
        ("bad.jsonl", b'{"content": "a"}\n', "a string `text`, got one with content"),
        ("bad.jsonl", b"[1]\n", "a string `text`, got list"),
        ("bad.parquet", b"PAR1 no", "not a parquet file"),
        ("empty.txt", b"", "holds no text"),
        ("blank.jsonl", json.dumps({"text": " "}).encode(), "holds no text"),
    ],
)
def test_errors_name_the_file_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents([tmp_path / name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent does not exist"):
        read_documents([tmp_path / "absent"])
    with pytest.raises(ValueError, match=r"no file of documents .* reads text, JSON lines"):
        read_documents([tmp_path])
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column `text`; it has body"):
        read_documents([tmp_path])
