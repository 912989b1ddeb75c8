"""How sure a number is: standard errors, paired bootstrap intervals, intervals of proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high


def mean_nll(nll: ArrayLike, tokens: ArrayLike) -> tuple[float, float]:
    """Mean nll per token, Σ nll_w / Σ n_w, and its standard error, windows being the unit that is sampled.

    se² = W/(W-1) · Σ (nll_w - mean·n_w)² / (Σ n_w)², the linearised variance of a ratio. Tokens of one
    window are anything but independent, so they are never counted as W·n observations. NaN for one window.

    Arguments:
        nll: sums of -ln p over each window, in nats, shape [windows].
        tokens: scored tokens of each window, shape [windows].

    Source: Cochran, Sampling Techniques (1977), section 6.4.
    """
    import numpy as np  # here: the help of every command is made from classes that know this file

    sums, counts = np.asarray(nll, float), np.asarray(tokens, float)
    windows, total = len(sums), counts.sum()
    mean = sums.sum() / total
    if windows < 2:
        return float(mean), math.nan
    spread = ((sums - mean * counts) ** 2).sum() * windows / (windows - 1)
    return float(mean), float(math.sqrt(spread) / total)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    tokens: ArrayLike,
    *,
    statistic: Literal["ratio", "difference"] = "ratio",
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of ppl(a)/ppl(b), or ppl(a) - ppl(b), over the same windows.

    Each sample draws windows with replacement, the same ones for a and b: what makes a text hard cancels, and
    the interval is far narrower than those of a and b suggest. Where there are several training runs, they
    are drawn with replacement too, run i of a together with run i of b (same seed, same data order); a
    single run on one side is compared with each run of the other. The perplexity of several runs is
    exp of the mean over runs of their mean nll. With few runs the interval covers their spread only roughly.

    Arguments:
        a, b: sums of -ln p over each window, in nats, shape [windows] or [runs, windows].
        tokens: scored tokens of each window, shape [windows], the same for a and b.
        statistic: what is estimated; a ratio below 1, or a difference below 0, favours a.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: if windows or runs of a and b do not match, or there are fewer than two windows.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    import numpy as np

    left, right = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    counts = np.asarray(tokens, float)
    windows = counts.shape[-1]
    if counts.ndim != 1 or left.shape[1:] != (windows,) or right.shape[1:] != (windows,) or windows < 2:
        raise ValueError(
            f"paired values need the same windows, at least two: got shapes {left.shape}, {right.shape} and "
            f"{counts.shape} tokens. Evaluate both on the same data, protocol and number of windows."
        )
    if len(left) != len(right) and 1 not in (len(left), len(right)):
        raise ValueError(f"cannot pair {len(left)} runs with {len(right)}: compare as many, or a single one.")
    if statistic not in ("ratio", "difference"):
        raise ValueError(f"unknown statistic {statistic!r}. Available: ratio, difference.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    generator = np.random.default_rng(seed)
    runs = max(len(left), len(right))
    # How often each sample drew each window and run: sums over draws become matrix products.
    drawn = generator.multinomial(windows, np.full(windows, 1 / windows), size=samples).astype(float)
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=samples) / runs
    drawn = np.vstack([np.ones(windows), drawn])  # row 0 is the sample itself
    weights = np.vstack([np.full(runs, 1 / runs), weights])

    def log_ppl(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        per_run = drawn @ sums.T / (drawn @ counts)[:, None]
        return (np.broadcast_to(per_run, weights.shape) * weights).sum(1)

    log_a, log_b = log_ppl(left), log_ppl(right)
    values = np.exp(log_a - log_b) if statistic == "ratio" else np.exp(log_a) - np.exp(log_b)
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion: honest near 0 and 1, where ± standard error is not.

    Source: Wilson (1927), Journal of the American Statistical Association 22.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"need 0 <= successes <= trials and a trial, got {successes} of {trials}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    # The bounds at 0 and 1 are exact in theory but for rounding.
    return Interval(rate, middle - half if successes else 0.0, middle + half if successes < trials else 1.0)


def difference(a: Interval, b: Interval) -> Interval:
    """The difference a - b of two proportions, with the interval that follows from their Wilson intervals.

    It takes the trials of a and b as independent. Where both had the same prompts, it is wider than it need be.

    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10.
    """
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    value = a.value - b.value
    return Interval(value, value - below, value + above)
