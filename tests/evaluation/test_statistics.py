"""Intervals against closed forms and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from longwave.evaluation.statistics import mean_nll, paired_bootstrap, wilson

WINDOWS, TARGETS = 200, 64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_standard_error_of_equal_windows_is_the_textbook_one(rng: np.random.Generator) -> None:
    nll = rng.normal(100, 10, WINDOWS)
    mean, error = mean_nll(nll, np.full(WINDOWS, TARGETS))
    assert mean == pytest.approx(nll.mean() / TARGETS)
    assert error == pytest.approx(stats.sem(nll / TARGETS))


def test_standard_error_of_unequal_windows_agrees_with_simulation(rng: np.random.Generator) -> None:
    def draw() -> tuple[np.ndarray, np.ndarray]:
        tokens = rng.integers(10, 100, WINDOWS)
        return tokens * rng.normal(2, 0.5, WINDOWS), tokens

    means, errors = zip(*(mean_nll(*draw()) for _ in range(400)), strict=True)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.1)


def test_one_window_has_no_error() -> None:
    assert math.isnan(mean_nll([3.0], [2])[1])


def test_pairing_cancels_what_windows_share(rng: np.random.Generator) -> None:
    """Windows differ by 20 %, the methods by 1 %: only the paired interval can tell."""
    hard = rng.normal(100, 20, WINDOWS)
    a, b = hard - 1.0 + rng.normal(0, 1, WINDOWS), hard
    tokens = np.full(WINDOWS, TARGETS)
    ratio = paired_bootstrap(a, b, tokens)
    assert ratio.value == pytest.approx(math.exp((a - b).mean() / TARGETS))
    assert ratio.high < 1
    expected = np.exp(np.array([-1.96, 1.96]) * stats.sem((a - b) / TARGETS)) * ratio.value
    assert [ratio.low, ratio.high] == pytest.approx(list(expected), rel=5e-4)
    assert 1 in paired_bootstrap(a, rng.permutation(b), tokens)


def test_difference_and_ratio_agree(rng: np.random.Generator) -> None:
    a, b = rng.normal(100, 10, (2, WINDOWS))
    tokens = np.full(WINDOWS, TARGETS)
    difference = paired_bootstrap(a, b, tokens, statistic="difference")
    ppl = [math.exp(mean_nll(x, tokens)[0]) for x in (a, b)]
    assert difference.value == pytest.approx(ppl[0] - ppl[1])
    assert paired_bootstrap(a, b, tokens).value == pytest.approx(ppl[0] / ppl[1])


def test_runs_widen_the_interval(rng: np.random.Generator) -> None:
    b = rng.normal(100, 10, WINDOWS)
    tokens = np.full(WINDOWS, TARGETS)
    alike = b - 1 + rng.normal(0, 0.5, (3, WINDOWS))
    apart = alike + np.array([[-3.0], [0.0], [3.0]])
    narrow, wide = paired_bootstrap(alike, b, tokens), paired_bootstrap(apart, b, tokens)
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_runs_are_paired_by_index(rng: np.random.Generator) -> None:
    seeds = rng.normal(0, 5, (3, 1))
    b = rng.normal(100, 10, WINDOWS) + seeds
    interval = paired_bootstrap(b - 1, b, np.full(WINDOWS, TARGETS))
    assert interval.low == pytest.approx(interval.high)


def test_coverage(rng: np.random.Generator) -> None:
    """The truth lies within the 95 % interval about 95 % of the time."""
    truth = math.exp(-1 / TARGETS)
    tokens = np.full(60, TARGETS)
    inside = 0
    for _ in range(300):
        b = rng.normal(100, 10, 60)
        interval = paired_bootstrap(b - 1 + rng.normal(0, 3, 60), b, tokens, samples=500)
        inside += truth in interval
    assert 0.90 <= inside / 300 <= 0.985


def test_the_seed_decides(rng: np.random.Generator) -> None:
    a, b = rng.normal(100, 10, (2, 40))
    tokens = np.full(40, TARGETS)
    assert paired_bootstrap(a, b, tokens, seed=1) == paired_bootstrap(a, b, tokens, seed=1)
    assert paired_bootstrap(a, b, tokens, seed=1) != paired_bootstrap(a, b, tokens, seed=2)


@pytest.mark.parametrize(
    ("a", "b", "tokens", "message"),
    [
        (np.ones(5), np.ones(4), np.ones(5), "need the same windows"),
        (np.ones(1), np.ones(1), np.ones(1), "at least two"),
        (np.ones((2, 5)), np.ones((3, 5)), np.ones(5), "cannot pair 2 runs with 3"),
    ],
)
def test_refuses_what_cannot_be_paired(a: np.ndarray, b: np.ndarray, tokens: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, tokens)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 10), (95, 100)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson(successes, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.value == successes / trials


def test_wilson_refuses_no_trials() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        wilson(0, 0)
