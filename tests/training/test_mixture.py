"""Mixtures by shares, long documents, replay."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from longwave.data.mixture import Part, parts_of, quotas
from longwave.training.batches import MicroBatches, PackedRows
from longwave.training.config import TrainConfig
from longwave.training.draw import LengthSampler
from longwave.training.mixture import MixedRows


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, letter in (("books", "b"), ("code", "c"), ("web", "w")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(letter * 4000, "utf-8")
    return tmp_path


def shares(folder: Path, *given: str) -> list[tuple[list[str], float]]:
    parts = parts_of([folder / each for each in given])
    return [([Path(path).name for path in part.paths], round(part.share, 9)) for part in parts]


def test_data_without_a_share_have_what_the_others_leave(folders: Path) -> None:
    assert shares(folders, "books", "code") == [(["books", "code"], 1.0)]
    assert shares(folders, "books@0.3", "code", "web") == [(["books"], 0.3), (["code", "web"], 0.7)]
    assert shares(folders, "books@0.5", "code@0.5") == [(["books"], 0.5), (["code"], 0.5)]


def test_shares_below_one_are_raised_and_told(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert shares(folders, "books@0.3", "code@0.2") == [(["books"], 0.6), (["code"], 0.4)]
    assert "0.5 in all, and are read in proportion" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no data"),
        (["books@0"], "above 0 and at most 1, got 0"),
        (["books@-1"], "above 0 and at most 1, got -1"),
        (["books@half"], "above 0 and at most 1, got half"),
        (["books@nan"], "above 0 and at most 1, got nan"),
        (["books@1e-6"], "at least 0.001"),
        (["books@0.7", "code@0.6"], "are 1.3 in all, and must be at most 1"),
        (["books@0.5", "code@0.5", "web"], "leave nothing for data .*web"),
        (["books@0.5", "books@0.2"], "given twice"),
        (["books@0.5", "books"], "given twice"),
        (["absent@0.5"], "absent does not exist"),
    ],
)
def test_mixtures_that_cannot_be(folders: Path, given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parts_of([folders / each for each in given])
    assert "\n" not in str(caught.value)


def test_quotas_fill_a_block() -> None:
    assert quotas([0.3, 0.7]) == [300, 700]
    assert quotas([1 / 3] * 3) == [334, 333, 333]
    assert sum(quotas([0.0015, 0.0015, 0.997])) == 1000


def mixed(items: int = 3000, seed: int = 1) -> MixedRows:
    sources = [
        PackedRows(torch.arange(rows * 4).view(rows, 4) + 1000 * k, items, seed) for k, rows in enumerate((7, 90))
    ]
    return MixedRows(sources, [0.3, 0.7], items, seed)


def test_every_block_holds_the_shares_and_every_source_its_rows_in_turn() -> None:
    rows = mixed()
    for block in range(3):
        assert Counter(rows.parts(range(1000 * block, 1000 * block + 1000))) == {0: 300, 1: 700}
    of_first = [int(rows[k]["input_ids"][0]) for k in range(3000) if rows.parts([k]) == [0]]
    assert of_first == [int(rows.sources[0][k]["input_ids"][0]) for k in range(len(of_first))]


def test_a_row_depends_on_its_number_alone() -> None:
    in_order = [mixed()[k]["input_ids"].tolist() for k in range(0, 3000, 37)]
    rows = mixed()
    assert [rows[k]["input_ids"].tolist() for k in reversed(range(0, 3000, 37))] == in_order[::-1]
    assert [mixed(seed=2)[k]["input_ids"].tolist() for k in range(0, 3000, 37)] != in_order


def test_what_was_used_is_what_was_read() -> None:
    """Rows, longer windows and replay: `used` counts the tokens that the batches hold."""
    sampler = LengthSampler(8, 16.0, short_share=0.3, long_share=0.4, seed=3)
    rows = mixed(items=4 * 60)
    rows.replay = PackedRows(torch.full((9, 4), 9000), 1, 0)
    batches, found = MicroBatches(rows, sampler, size=4), Counter[int]()
    for first in range(0, len(batches), 4):
        ids = batches.collate(range(first, first + 4))["input_ids"].flatten().tolist()
        found.update(-1 if each == 9000 else each // 1000 for each in ids)
    assert batches.used() == found and set(found) == {-1, 0, 1} and found.total() == 4 * 60 * 4


def test_long_documents_are_read_more_often() -> None:
    often = torch.tensor([0, 1, 1, 1, 2])
    rows = PackedRows(torch.arange(12).view(3, 4), 10, 0, often=often)
    read = Counter(int(rows[k]["input_ids"][0]) // 4 for k in range(5))
    assert read == {0: 1, 1: 3, 2: 1}
    spans = rows.spans(4000, 4, torch.Generator().manual_seed(0))["input_ids"][:, 0]
    assert 0.5 < ((spans >= 4) & (spans < 8)).float().mean() < 0.7
    assert int(spans.max()) == 8


def record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


@pytest.mark.slow
def test_a_run_on_a_mixture(llama, train, folders: Path) -> None:
    (folders / "web" / "b.jsonl").write_text('{"text": "w"}\nbroken\n', "utf-8")
    data = [f"{folders}/books@0.25", f"{folders}/code"]
    out = train(llama, data=data, replay=f"{folders}/web@0.5", steps=8)
    found = record(out)
    assert found["shares"] == {f"{folders}/books": 0.25, f"{folders}/code": 0.75}
    used = found["result"]
    assert used["broken_lines"] == 1 and found["config"]["short_share"] == 0.5
    tokens = [*used["tokens_by_source"].values(), *used["tokens_of_replay"].values()]
    assert len(tokens) == 3 and all(tokens) and sum(tokens) == used["tokens"] == 8 * 4 * 48


@pytest.mark.slow
def test_a_resumed_run_has_the_same_shares(llama, train, folders: Path) -> None:
    train(llama, data=[f"{folders}/books@0.25", f"{folders}/code"])
    with pytest.raises(ValueError, match="the shares of the data are not the same"):
        train(llama, data=[f"{folders}/books@0.5", f"{folders}/code"], resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strict": True}, "line 2: not JSON"),
        ({"text_column": "body"}, "`body`"),
        ({"long_documents": "2x", "train_length": 5000, "max_factor": 128, "row_length": 48, "long_share": 0.1,
          "batch_size": 128}, "hold none"),
        ({"long_documents": "twice"}, "a whole number of times such as 2x, got 'twice'"),
        ({"long_documents": "0x"}, "a whole number of times"),
        ({"replay": "web"}, "replay is data with their share"),
        ({"replay": "web@0.2", "short_share": 0.1}, "Leave one out"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(llama, train, folders: Path, settings: dict, message: str) -> None:
    (folders / "web" / "b.jsonl").write_text('{"text": "w"}\nbroken\n{"text": "w"}\n', "utf-8")
    if "replay" in settings:
        settings = settings | {"replay": f"{folders}/{settings['replay']}"}
    with pytest.raises(ValueError, match=message):
        train(llama, data=[folders / "web"], **settings)


def test_a_record_of_an_older_version_is_the_same_run() -> None:
    config = TrainConfig.create(train_length=64, max_factor=4)
    older = json.loads(json.dumps(config.as_dict()))
    for name in ("replay", "long_documents", "text_column", "strict"):
        del older[name]
    assert config.differences(older) == []


def test_a_source_that_is_too_short_is_named(llama, train, folders: Path) -> None:
    (folders / "code" / "a.txt").write_text("short", "utf-8")
    with pytest.raises(ValueError, match=r"data .*code: a row of 48 tokens is more than the data holds"):
        train(llama, data=[f"{folders}/books@0.5", f"{folders}/code@0.5"])


def test_a_part_has_the_name_of_its_paths() -> None:
    assert Part(("a", "b"), 0.5).name == "a, b"
