"""Positions and factors: what every sampler promises, for any window and any t."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.schedule import tokens_at
from longwave.training import config
from longwave.training.draw import FACTORS, POSITIONS, LengthSampler, counter_generator

SAMPLERS = st.sampled_from(sorted(POSITIONS))
seeds = st.integers(0, 2**31)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(SAMPLERS, st.integers(1, 4), st.integers(1, 90), st.integers(0, 300), st.integers(1, 8), seeds)
def test_positions_are_strictly_increasing_and_in_range(name, rows, length, spare, count, seed):
    limit = length + spare
    ids = POSITIONS[name](rows, length, limit, counter_generator(seed), count)
    assert ids.shape == (rows, length)
    assert ids.dtype == torch.long
    assert (ids >= 0).all()
    assert (ids < limit).all()
    assert (ids.diff(dim=1) >= 1).all()
    assert (ids[:, 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 90), st.integers(0, 300), st.integers(1, 8), seeds)
def test_chunks_are_contiguous_and_as_many_as_asked(length, spare, count, seed):
    ids = POSITIONS["chunks"](3, length, length + spare, counter_generator(seed), count)
    jumps = (ids.diff(dim=1) > 1).sum(dim=1)
    assert (jumps <= min(count, length) - 1).all()


def test_chunks_reach_the_end_and_use_every_gap():
    ids = POSITIONS["chunks"](4000, 16, 48, counter_generator(0), 2)
    assert ids[:, -1].max() == 47
    counts = torch.bincount(ids[:, -1], minlength=48)[15:]  # uniform over the 33 possible gaps
    assert counts.min() > 0.6 * 4000 / 33


@pytest.mark.parametrize("name", ["random", "uniform"])
def test_both_ends_are_pinned(name):
    ids = POSITIONS[name](50, 10, 77, counter_generator(1), 2)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 76).all()


def test_uniform_spacing_differs_by_at_most_one():
    gaps = POSITIONS["uniform"](1, 100, 777, counter_generator(0), 2).diff()
    assert gaps.max() - gaps.min() <= 1


def test_rows_of_a_batch_differ():
    for name in ("chunks", "random"):
        ids = POSITIONS[name](8, 32, 512, counter_generator(3), 3)
        assert len({tuple(row) for row in ids.tolist()}) == 8


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FACTORS)), st.floats(1, 64), seeds)
def test_factors_stay_in_range(name, maximum, seed):
    t = FACTORS[name](maximum, counter_generator(seed))
    assert 1 <= t <= maximum * (1 + 1e-12)
    assert name != "integer" or t == int(t)


def test_factor_distributions():
    octaves, whole = torch.zeros(4), torch.zeros(17)
    for seed in range(2000):
        octaves[int(math.log2(FACTORS["log-uniform"](16.0, counter_generator(seed))))] += 1
        whole[int(FACTORS["integer"](16.0, counter_generator(seed)))] += 1
    assert (octaves > 400).all()  # 500 expected, standard deviation 19
    assert whole[0] == 0
    assert (whole[1:] > 70).all()  # 125 expected, standard deviation 11
    assert FACTORS["fixed"](16.0, counter_generator(0)) == 16.0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(SAMPLERS, st.sampled_from(sorted(FACTORS)), st.integers(2, 64), st.integers(2, 300), st.floats(1, 16), seeds)
def test_defect_train_length_not_multiple(name, factors, original, length, maximum, seed):
    """The official trainer ran positions past t·L unless the window was a multiple of L."""
    sampler = LengthSampler(original, maximum, positions=name, factors=factors, seed=seed)
    if length / original > maximum:
        with pytest.raises(ValueError, match="beyond the largest factor"):
            sampler(2, length, step=0)
        return
    t, ids = sampler(2, length, step=0)
    assert 1 <= t <= maximum * (1 + 1e-12)
    assert t >= length / original
    assert (ids < max(length, tokens_at(t, original))).all()
    assert (ids.diff(dim=1) >= 1).all()


def test_defect_factor_and_positions_from_one_seeded_generator():
    """The official code drew t and positions from two generators, neither in step with the other."""
    sampler = LengthSampler(32, 16.0, seed=5)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    t, ids = sampler(4, 32, step=7, place=2)
    assert torch.equal(torch.random.get_rng_state(), before)  # global generators are neither read nor moved
    torch.manual_seed(1)
    again, same = sampler(4, 32, step=7, place=2)
    assert t == again
    assert torch.equal(ids, same)
    assert sampler(4, 32, step=8, place=2)[0] != t
    neighbour, others = sampler(4, 32, step=7, place=3)
    assert neighbour == t and not torch.equal(others, ids)  # a step has one t, a micro-batch its own positions
    assert LengthSampler(32, 16.0, seed=6)(4, 32, step=7, place=2)[0] != t


def test_share_of_short_micro_batches():
    sampler = LengthSampler(64, 8.0, short_share=0.25, seed=3)
    draws = [sampler(2, 48, step=step) for step in range(1000)]
    short = [ids for t, ids in draws if t == 1.0]
    assert 200 < len(short) < 300
    assert all(torch.equal(ids, torch.arange(48).repeat(2, 1)) for ids in short)


def test_short_micro_batches_longer_than_the_original_are_merely_contiguous():
    whole, _ = LengthSampler(64, 8.0, factors="integer", short_share=1.0)(1, 100, step=0)
    assert whole == 2.0  # a model that runs at whole factors never meets another
    t, ids = LengthSampler(64, 8.0, short_share=1.0)(1, 100, step=0)
    assert t == 100 / 64
    assert torch.equal(ids[0], torch.arange(100))


def test_config_offers_what_exists():
    assert set(config.POSITIONS) == set(POSITIONS)
    assert set(config.FACTORS) == set(FACTORS)


def test_long_share_draws_real_windows_of_as_many_tokens():
    sampler = LengthSampler(64, 10.0, short_share=0.2, long_share=0.5, seed=1)
    assert sampler.multiples(16, 64) == [2, 4, 8]
    assert sampler.multiples(4, 64) == [2, 4]
    assert sampler.multiples(6, 64) == [2, 3, 6]
    assert sampler.multiples(9, 64) == [3, 9]
    assert sampler.multiples(11, 64) == []
    draws = [sampler(16, 64, step=step) for step in range(400)]
    long = [(t, ids) for t, ids in draws if ids.shape[1] > 64]
    assert 0.4 < len(long) / len(draws) < 0.6
    assert {ids.shape[1] for _, ids in long} == {128, 256, 512}
    for t, ids in long:
        assert ids.numel() == 16 * 64
        assert t == ids.shape[1] / 64
        assert torch.equal(ids, torch.arange(ids.shape[1]).expand_as(ids))


@pytest.mark.parametrize("rows", [3, 6, 9])
def test_long_windows_leave_no_row_out(rows):
    sampler = LengthSampler(64, 10.0, long_share=1.0, seed=1)
    draws = [sampler(rows, 64, step=step)[1] for step in range(40)]
    assert {ids.numel() for ids in draws} == {rows * 64}
    assert {ids.shape[1] // 64 for ids in draws} == set(sampler.multiples(rows, 64))


def test_long_share_without_room_is_refused():
    with pytest.raises(ValueError, match=r"batch size of at least 2 \(got 1\)"):
        LengthSampler(64, 8.0, long_share=0.1)(1, 64, step=0)
    with pytest.raises(ValueError, match="long share needs room"):
        LengthSampler(64, 1.5, long_share=0.1)(4, 64, step=0)
    with pytest.raises(ValueError, match=r"a window of 7 x 64 tokens.*\(got 7\).*batch size with a smaller divisor"):
        LengthSampler(64, 4.0, long_share=0.1)(7, 64, step=0)
