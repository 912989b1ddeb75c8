"""Packed rows and their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.training.data import PackedRows, collate, pack


def test_packing_cuts_in_order_and_drops_the_rest() -> None:
    assert pack(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_train_length_beyond_the_data() -> None:
    with pytest.raises(ValueError, match=r"train length 12 is more than the data holds \(11 tokens\)"):
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


def test_batches_have_labels_and_a_mask() -> None:
    batch = collate([{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3, 4])}])
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1]]
