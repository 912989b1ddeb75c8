"""Draws of micro-batches: none is longer than the train length, and those of older versions stay what they were."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.training.config import TrainConfig
from longwave.training.draw import FACTORS, POSITIONS, LengthSampler, counter_generator


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_draw_has_a_row_of_more_real_tokens_than_the_train_length(data: st.DataObject) -> None:
    original, rows, row = (data.draw(st.integers(*span)) for span in ((4, 64), (1, 12), (2, 100)))
    longest = data.draw(st.integers(row, 8 * row))
    largest = max(1.0, longest / original) * data.draw(st.floats(1, 3))
    short, long = data.draw(st.floats(0, 1)), data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    sampler = LengthSampler(
        original, largest, positions=data.draw(st.sampled_from(sorted(POSITIONS))),
        factors=data.draw(st.sampled_from(sorted(FACTORS))), chunks=1, short_share=short * (1 - long),
        long_share=long, train_length=longest, least_factor=data.draw(st.floats(1, max(1.0, int(largest)))),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    if long and not sampler.multiples(rows, row):
        with pytest.raises(ValueError, match="long share"):
            sampler(rows, row, step=0)
        return
    for step in range(8):
        t, ids = sampler(rows, row, step=step, place=1)
        again, same = sampler(rows, row, step=step, place=1)
        assert t == again and torch.equal(ids, same)
        assert ids.shape[1] == sampler.window(rows, row, step=step) <= longest
        assert ids.numel() == rows * row  # as many tokens as any batch, and no row left over
        assert max(1.0, ids.shape[1] / original) <= t <= largest * (1 + 1e-12)
        if ids.shape[1] > row:
            assert torch.equal(ids, torch.arange(ids.shape[1]).expand_as(ids))


@pytest.mark.slow
def test_the_short_recipe() -> None:
    """Half of the micro-batches are real windows of 2 L and 4 L, the others rows of 2 L that skip to 4 L ... 32 L."""
    sampler = LengthSampler(256, 32.0, chunks=8, long_share=0.5, train_length=1024, least_factor=4.0, seed=7)
    assert sampler.multiples(16, 512) == [1, 2]
    kinds, octaves = Counter[tuple[int, bool]](), Counter[int]()
    for step in range(1200):
        t, ids = sampler(16, 512, step=step)
        real = bool(torch.equal(ids, torch.arange(ids.shape[1]).expand_as(ids)))
        kinds[ids.shape[1], real] += 1
        if real:
            assert t == ids.shape[1] / 256
        else:
            assert 4 <= t < 32
            octaves[4 if t < 8 else 8 if t < 16 else 16] += 1
    assert kinds.keys() == {(512, True), (1024, True), (512, False)}
    assert abs(kinds[512, False] - 600) < 70  # standard deviation 17
    assert abs(kinds[512, True] - 300) < 60
    assert all(abs(count - 200) < 50 for count in octaves.values())  # log-uniform: every octave equally often


@pytest.mark.parametrize(
    ("given", "rows", "row", "longest", "digest"),
    [
        ({"max_factor": 16, "chunks": 8, "short_share": 0.3, "long_share": 0.6}, 16, 256, 4096, "eed9df5a175a5972"),
        ({"max_factor": 16, "positions": "random", "factors": "integer", "seed": 2}, 16, 256, 256, "1c3de417ae8f9660"),
        (
            {"original_length": 64, "max_factor": 10, "factors": "integer", "short_share": 0.2, "long_share": 0.5,
             "seed": 1}, 6, 48, 640, "c63854d1a82d8c01",
        ),
        (
            {"original_length": 64, "max_factor": 8, "positions": "uniform", "factors": "fixed", "long_share": 0.4,
             "seed": 5}, 4, 16, 64, "1b01d1da5aac3001",
        ),
        ({"original_length": 64, "max_factor": 8, "short_share": 0.4, "seed": 3}, 2, 100, 100, "eab6456ea4f59a05"),
    ],
)  # fmt: skip
def test_draws_of_older_versions_are_drawn_again(
    given: dict[str, Any], rows: int, row: int, longest: int, digest: str
) -> None:
    """Digests of the code that had no train length of its own: `--train-length` was the length of a row there."""
    sampler = LengthSampler(**{"original_length": 256, **given}, train_length=longest)
    found = hashlib.sha256()
    for step in range(60):
        for rank in range(2):
            t, ids = sampler.draw(rows, row, counter_generator(sampler.seed, step, step % 3, rank))
            found.update(repr((t, tuple(ids.shape))).encode())
            found.update(ids.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_the_first_micro_batch_of_a_step_is_that_of_older_versions() -> None:
    """Their runs of one process without accumulation go on bit for bit."""
    sampler = LengthSampler(64, 8.0, short_share=0.2, long_share=0.4, seed=3)
    for step in range(40):
        (t, ids), (old, before) = sampler(4, 16, step=step), sampler.draw(4, 16, counter_generator(3, step, 0, 0))
        assert t == old and torch.equal(ids, before)


def test_a_row_length_in_tokens_or_in_multiples_of_the_original_length() -> None:
    def row(given: int | str | None, original: int) -> int:
        share = 0.5 if given is not None else 0.0
        config = TrainConfig.create(train_length=1024, max_factor=16, row_length=given, long_share=share)
        return config.row_tokens(original)

    assert [row(given, 256) for given in (None, 512, "512", "2x", "1.5x")] == [1024, 512, 512, 512, 384]
    with pytest.raises(ValueError, match=r"at most the train length, 1024, .* got 2x \(2048 tokens\)"):
        row("2x", 1024)
