"""Data sets of the hub by name: a folder in the hub's layout stands for one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes
from longwave.data.kinds import Parsing

CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train.jsonl}
  - {split: test, path: plain/test.jsonl}
  default: true
- config_name: long
  data_files:
  - {split: train, path: long/train.jsonl}
---
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "owner" / "books"
    for name, text in (("plain/train", "a"), ("plain/test", "b"), ("long/train", "c")):
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"content": "{text}", "id": 1}}\n', "utf-8")
    (folder / "README.md").write_text(CARD, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("suffix", "text"), [("", "a"), (":train", "a"), (":test", "b"), (":long", "c"), (":plain:test", "b")]
)
def test_a_data_set_by_name(dataset: Path, suffix: str, text: str) -> None:
    name, how = f"hub:{dataset}{suffix}", Parsing("content")
    assert read_documents([name], data_hashes([name], how), how)["text"][:] == [text]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":nothing", "has no split nothing; it has train, test"),
        (":long:test", "has no split test; it has train"),
        (":nothing:train", "cannot be loaded: BuilderConfig 'nothing' not found"),
        (":a:b:c", "is no name of a data set. Write hub:NAME"),
        ("/absent", "cannot be loaded"),
    ],
)
def test_what_there_is_not(dataset: Path, suffix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_documents([f"hub:{dataset}{suffix}"])
    assert "\n" not in str(caught.value)


def test_a_data_set_without_the_column(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"no column `text`; it has content, id\. Pass .*--text-column NAME"):
        read_documents([f"hub:{dataset}"])
