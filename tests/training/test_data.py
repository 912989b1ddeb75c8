"""Packed rows and their order."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.training.batches import MicroBatches, PackedRows, collate, pack
from longwave.training.draw import LengthSampler


def test_packing_cuts_in_order_and_drops_the_rest() -> None:
    assert pack(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_row_beyond_the_data() -> None:
    with pytest.raises(ValueError, match=r"a row of 12 tokens is more than the data holds \(11 tokens\)"):
        pack(torch.arange(11), 12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**31))
def test_every_epoch_holds_every_row_once(rows: int, items: int, seed: int) -> None:
    data = PackedRows(torch.arange(rows).view(rows, 1), items, seed)
    seen = [int(data[k]["input_ids"]) for k in range(len(data))]
    assert len(seen) == items
    for start in range(0, items - rows + 1, rows):
        assert sorted(seen[start : start + rows]) == list(range(rows))


def test_an_item_depends_on_nothing_that_was_read_before() -> None:
    rows = torch.arange(10).view(10, 1)
    in_order = [PackedRows(rows, 40, 3)[k]["input_ids"].item() for k in range(40)]
    data = PackedRows(rows, 40, 3)
    assert [data[k]["input_ids"].item() for k in reversed(range(40))] == in_order[::-1]
    assert in_order[:10] != in_order[10:20]
    assert [PackedRows(rows, 40, 4)[k]["input_ids"].item() for k in range(40)] != in_order


class Watched(PackedRows):
    """Packed rows that note which of them were read."""

    read: list[int] = []  # noqa: RUF012 - set by the test

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        self.read.append(item)
        return super().__getitem__(item)


@pytest.mark.parametrize("layout", [(1, 4), (2, 2), (4, 1)])
def test_a_micro_batch_is_the_same_in_every_layout(layout: tuple[int, int]) -> None:
    """Whichever process loads it: rows, positions and text are those of its number in the run."""
    processes, accumulation = layout
    sampler = LengthSampler(64, 8.0, short_share=0.2, long_share=0.4, seed=3)
    rows = PackedRows(torch.arange(40 * 16).view(40, 16), 4 * 4 * 12, 3)  # rows, micro-batches, steps
    batches = MicroBatches(rows, sampler, size=4, per_step=4)
    order = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(batches), 4, drop_last=False)
    kinds = set()
    shards = [list(BatchSamplerShard(order, processes, rank)) for rank in range(processes)]  # as accelerate does
    for number in range(4 * 12):
        step, place = divmod(number, 4)
        turn, rank = divmod(number, processes)
        batch = batches.collate([batches[item] for item in shards[rank][turn]])
        t, positions = sampler(4, 16, step=step, place=place)
        draw = batch["draw"]
        assert (draw.t, draw.number, turn // accumulation) == (t, number, step)
        assert torch.equal(batch["position_ids"], positions) and torch.equal(draw.positions, positions)
        assert batch["input_ids"].shape == batch["labels"].shape == positions.shape
        first = batches.draw(4 * step)
        assert (first.t, first.positions.shape) == (t, positions.shape)  # no process waits for a longer window
        skips = first.positions.shape[1] == 16 and t > 1
        assert torch.equal(first.positions, positions) == (place == 0 or not skips)
        kinds.add((positions.shape[1], t == 1))
    assert len(kinds) > 3


def test_rows_are_read_only_where_they_are_trained_on() -> None:
    sampler = LengthSampler(64, 8.0, long_share=0.5, seed=1)
    rows = Watched(torch.arange(40 * 16).view(40, 16), 80, 1)
    batches, expected = MicroBatches(rows, sampler, size=4), []
    Watched.read = []
    for first in range(0, 80, 4):
        items = list(range(first, first + 4))
        batch = batches.collate(items)
        assert batch["input_ids"].numel() == 64
        expected += items if batch["input_ids"].shape == (4, 16) else []
    assert rows.read == expected
    assert 0 < len(expected) < 80


def test_batches_have_labels_and_a_mask() -> None:
    batch = collate([{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3, 4])}])
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1]]
