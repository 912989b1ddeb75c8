"""Which files of a folder are read, and that the others are named."""

from __future__ import annotations

import gzip
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes, data_identity
from longwave.data.sources import data_files, find

LINE = '{"text": "of a line"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def put(folder: Path, **contents: str | bytes) -> Path:
    """A folder with files, `__` in a name for a dot and `___` for a slash."""
    for name, content in contents.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def names(folder: Path, paths: object) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A clone of a data set of the Hugging Face hub."""
    root = tmp_path / "hub"
    put(
        root, README__md="---\nlicense: mit\n---\n", LICENSE="MIT", dataset_infos__json='{"default": {}}',
        loader__py="import datasets\n", __gitattributes="*.parquet", __git___HEAD="ref", data___notes__txt="a note",
    )  # fmt: skip
    pq.write_table(pa.table({"text": ["one", "two"]}), root / "data" / "train-00000-of-00001.parquet")
    return root


def test_a_clone_of_the_hub_is_its_data(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "longwave"):
        assert list(read_documents([hub])["text"]) == ["a note", "one", "two"]
    (message,) = caplog.messages
    assert "\n" not in message
    for name in (
        "infos.json (line 1",
        ".git (hidden)",
        "loader.py (about",
        "LICENSE (about",
        "README.md (about",
    ):
        assert name in message
    assert "and 1 more" in message
    assert names(hub, find([hub]).passed)[-1] == "loader.py"


def test_a_file_given_by_its_own_path_is_read(hub: Path) -> None:
    assert list(read_documents([hub / "README.md", hub / ".gitattributes"])["text"])[1] == "*.parquet"
    with pytest.raises(ValueError, match=r"dataset_infos\.json, line 1: expected an object with a string `text`"):
        read_documents([hub / "dataset_infos.json"])


def test_a_folder_of_text_is_read_whatever_the_suffixes(tmp_path: Path) -> None:
    put(tmp_path, README__md="a", code__py="b", LICENSE="c", page__html="d", deep___requirements__txt="e")
    assert sorted(read_documents([tmp_path])["text"]) == ["a", "b", "c", "d", "e"]


def test_scripts_are_passed_over_only_beside_or_above_data(tmp_path: Path) -> None:
    put(tmp_path, setup__py="a", src___code__py="b", tests___data___x__jsonl=LINE, tests___README__md="c")
    assert names(tmp_path, data_files([tmp_path])) == ["src/code.py", "tests/data/x.jsonl"]


def test_tables_and_settings_in_a_folder_of_text(tmp_path: Path) -> None:
    put(
        tmp_path, a__txt="a", table__csv="x,y\n1,2\n", numbers__json="[1, 2]", package__json='{\n "name": "x"\n}',
        broken__json="{", picture__png=b"\x89PNG\0\0", pointer__txt="version https://git-lfs.github.com/spec/v1\n",
    )  # fmt: skip
    found = find([tmp_path])
    assert names(tmp_path, [source.file for source in found.sources]) == ["a.txt"]
    reasons = {path.name: reason for path, reason in found.passed.items()}
    assert sorted(reasons) == [
        "broken.json", "numbers.json", "package.json", "picture.png", "pointer.txt", "table.csv",
    ]  # fmt: skip
    assert reasons["table.csv"] == "has no column `text`; it has x, y"
    assert reasons["picture.png"] == "is not text: it holds NUL bytes"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", b'{"text": "\x00"}\n'),
        ("c.jsonl", b'{"body": "x"}\n'),
        ("c.json", b'{"text": null}\n'),
        ("c.json", b'[{"text": "\\ud800"}]'),
        ("c.json", b'{"text": "cut\n{"text": "ok"}\n'),
        ("c.json", b'{"id": 1, "text": "cut'),
        ("c.json", b'\xef\xbb\xbf[{"text": "hello wor'),
        ("c.json", b'["hello wor'),
        ("c.json.gz", gzip.compress(b'[{"text": "hello wor', mtime=0)),
        ("c.json", POINTER),
        ("c.csv", POINTER),
        ("c.parquet", POINTER),
        ("c.csv", b'"id"x,text\n1,a\n'),
        ("c.csv", "gr\xf6\xdfe,text\n1,a\n".encode("latin-1")),
        ("c.csv", "id,text\n1,a\n".encode("utf-16")),
        ("c.csv", b"text\na,b\n"),
        ("c.csv", b"text\n\xff\n"),
        ("c.parquet", b"PAR1"),
        ("c.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9]),
    ],
)
def test_damaged_data_in_a_folder_are_not_passed_over(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path, a__txt="a")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data .*/{name}\b"):
        read_documents([tmp_path])


def test_a_link_to_data_that_do_not_exist_stops(tmp_path: Path) -> None:
    put(tmp_path, a__txt="a")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"broken\.jsonl is a link to a file that does not exist"):
        find([tmp_path])


@pytest.mark.parametrize("header", [b'"id"x,value\n1,2\n', "gr\xf6\xdfe,alter\n1,2\n".encode("latin-1")])
def test_a_csv_header_without_texts_is_passed_over_however_it_is_written(tmp_path: Path, header: bytes) -> None:
    put(tmp_path, a__txt="a", b__csv=header)
    found = find([tmp_path])
    assert names(tmp_path, [source.file for source in found.sources]) == ["a.txt"]
    assert "has no column `text`" in found.passed[tmp_path / "b.csv"]


def test_a_file_that_could_be_data_is_named_before_hidden_files(tmp_path: Path) -> None:
    hidden = {f"__hidden{i}": "x" for i in range(9)}
    put(tmp_path, a__jsonl=LINE, README__md="x", train__json="{", **hidden)
    assert find([tmp_path]).passed_over().startswith(f"{tmp_path}/train.json (")


def test_a_name_is_a_card_only_as_a_whole_word(tmp_path: Path) -> None:
    put(
        tmp_path, a__jsonl=LINE, LICENSES__txt="x", README_zh__md="x", readme2="x",
        **{"LICENSE-MIT": "x", "Licensed to Kill__txt": "a book", "Readmember__txt": "a book"},
    )  # fmt: skip
    assert names(tmp_path, data_files([tmp_path])) == ["Licensed to Kill.txt", "Readmember.txt", "a.jsonl"]


def test_a_file_given_besides_its_folder_is_not_passed_over(hub: Path) -> None:
    found = find([hub, hub / "README.md"])
    assert hub / "README.md" in [source.file for source in found.sources]
    assert hub / "README.md" not in found.passed


def test_packed_and_upper_case_files_do_not_vanish(tmp_path: Path) -> None:
    put(tmp_path, a__txt="a", b__jsonl__gz=gzip.compress(LINE.encode(), mtime=0), c__JSONL=LINE)
    pq.write_table(pa.table({"text": ["of a row"]}), tmp_path / "D.PARQUET")
    assert sorted(read_documents([tmp_path])["text"]) == ["a", "of a line", "of a line", "of a row"]


def test_links_are_followed_to_files_and_named_otherwise(tmp_path: Path) -> None:
    put(tmp_path, elsewhere___a__txt="a", data___b__txt="b")
    (tmp_path / "data" / "a.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "gone.txt").symlink_to(tmp_path / "gone.txt")
    found = find([tmp_path / "data"])
    assert names(tmp_path, [source.file for source in found.sources]) == ["data/a.txt", "data/b.txt"]
    assert {path.name: reason for path, reason in found.passed.items()} == {
        "folder": "a link to a folder", "gone.txt": "not a file",
    }  # fmt: skip


def test_a_saved_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"text {i}" for i in range(9)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved", num_shards=2)
    assert list(read_documents([tmp_path / "saved"])["text"]) == texts
    assert caplog.messages == []
    again = datasets.load_from_disk(tmp_path / "saved")
    again.map(lambda row: {"text": "made by map"}, cache_file_name=str(tmp_path / "saved" / "cache-1.arrow"))
    assert list(read_documents([tmp_path / "saved"])["text"]) == texts
    assert "cache-1.arrow (not part of the saved data set)" in caplog.messages[0]
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"without its file data-00001-of-00002\.arrow"):
        read_documents([tmp_path / "saved"])


def test_a_saved_data_set_whose_files_lie_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, a__txt="a", saved___b__txt="b", saved___state__json='{"_data_files": [{"filename": "../a.txt"}]}')
    with pytest.raises(ValueError, match=r"saved is a saved data set with its file .*/a\.txt elsewhere"):
        find([tmp_path / "saved"])


@pytest.mark.parametrize("entry", ["null", "{}", '{"filename": 1}', '"a"'])
def test_the_state_of_another_program_is_no_saved_data_set(tmp_path: Path, entry: str) -> None:
    put(tmp_path, a__txt="a", state__json=f'{{"_data_files": [{entry}]}}')
    assert names(tmp_path, data_files([tmp_path])) == ["a.txt"]


def test_saved_splits(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert list(read_documents([tmp_path / "saved"])["text"]) == ["test", "train"]


def test_empty_documents_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, a__jsonl=LINE + '{"text": " "}\n', b__csv='text\n""\nx\n')
    pq.write_table(pa.table({"text": ["y", None]}), tmp_path / "c.parquet")
    assert list(read_documents([tmp_path])["text"]) == ["of a line", "x", "y"]
    assert f"left out 3 empty documents of 6 ({tmp_path}/a.jsonl, ...)" in caplog.messages[0]


def test_an_empty_document_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, a__txt="a", b__txt="\n")
    assert list(read_documents([tmp_path])["text"]) == ["a"]
    assert caplog.messages == [f"left out 1 empty document of 2 ({tmp_path}/b.txt)."]


def test_nothing_left_names_what_was_passed_over(tmp_path: Path) -> None:
    put(tmp_path, a__csv="x\n1\n", b__bin=b"\0")
    with pytest.raises(ValueError, match=r"Passed over: .*a\.csv \(has no column `text`; it has x\), .*b\.bin"):
        find([tmp_path])


def test_the_identity_of_data_says_how_they_are_read(tmp_path: Path) -> None:
    put(tmp_path, a__txt="x", b__jsonl=LINE, c__ndjson=LINE, D__JSONL=LINE, e__md="x", f__json=LINE, g__csv="text\nx\n")
    kinds = [kind for kind, _ in data_identity(data_hashes([tmp_path]))]
    assert kinds == [".jsonl", "text", ".jsonl", ".ndjson", "text", ".json", ".csv"]
    assert data_identity({"a.jsonl.gz": "0", "A.TXT.GZ": "1", "b.Parquet": "2"}) == [
        [".jsonl", "0"], ["text", "1"], [".parquet", "2"],
    ]  # fmt: skip


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: pytest takes the place of the handler that shows warnings."""
    line = [sys.executable, "-m", "longwave", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_says_what_it_passed_over_and_why_it_stops(plain: Path, hub: Path, tmp_path: Path) -> None:
    put(hub, data___long__jsonl='{"text": "' + "A long line. " * 99 + '"}\n')
    asked = ("perplexity", plain, "--lengths", "1x", "--windows", 2, "--targets", 16, "--methods", "none")
    done = command(*asked, "--data", hub, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert f"passed over in the data: {hub}/dataset_infos.json (line 1" in done.stderr
    put(hub, data___bad__jsonl='{"text": null}')
    done = command(*asked, "--data", hub, "-o", tmp_path / "other")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: data {hub}/data/bad.jsonl, line 1: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["data_files", "data_hashes", "read_documents", "stream_and_starts", "token_stream"])
def test_old_names_still_work(name: str) -> None:
    import longwave.text

    with pytest.deprecated_call(match=rf"longwave\.text\.{name} has moved"):
        assert callable(getattr(longwave.text, name))
    with pytest.raises(AttributeError, match="it has data_files"):
        _ = longwave.text.read_document
