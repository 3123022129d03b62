"""Uncertainty of scores: bootstrap intervals over items, paired comparison of two models, exact tests.

A share of right answers has Wilson's score interval (`share_interval`): with few items, or nearly all of them right or
wrong, the bootstrap of a proportion is too narrow. Other intervals resample items with replacement and take percentiles
of the statistic (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13); `ratio_interval` takes
Wilson's where all items are alike. Two models that answered the same items are compared on the same resamples, which
removes the difficulty of the items from the difference. Random numbers come from a seeded generator, so a result can be
made again. For the difference of two shares of right answers take statistics.differences.

Items of different weight tell less than as many of one weight: n items of weights w as much as (sum w)^2 / sum w^2
(Kish, Survey Sampling, 1965, section 11.7), which is n where all weigh the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_CHUNK = 4_000_000  # resampled items held at once: 32 MB of indices


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Discordant items of two models and the exact two-sided p-value that both are equally good."""

    only_first: int
    only_second: int
    p_value: float


def mean_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Bootstrap interval of a mean over items, for instance of a difference of scores.

    values  [items] numbers or booleans
    """
    data = _vector("values", values)
    return _interval(float(data.mean()), _resample(len(data), lambda i: data[i].mean(1), resamples, seed), level)


def share_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Wilson's interval of a share of right answers; the bootstrap's of a mean of shares.

    values  [items] booleans; or the share of right answers to each item, of several: where one of these is neither 0
            nor 1 there is no count of right items, and items are drawn again
    """
    data = _vector("values", values)
    if np.isin(data, (0, 1)).all():
        return wilson(int(data.sum()), len(data), level=level)
    return mean_interval(data, level=level, resamples=resamples, seed=seed)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap interval of a ratio of sums over items, for instance of points won over points possible.

    numerators, denominators  [items]; an item that is worth nothing has denominator 0

    Where every item has all it is worth, or every one has nothing, it is Wilson's interval of as many items as these
    are worth: every resample would be the same, as if there were no doubt.
    """
    top, bottom = _vector("numerators", numerators), _vector("denominators", denominators)
    _check_paired(top, bottom)
    if bottom.min() < 0 or bottom.sum() == 0:
        raise ValueError(f"denominators: got a sum of {bottom.sum()}, expected numbers >= 0, not all of them 0")
    if not top.any() or (top == bottom).all():
        return wilson_interval(float(top.any()), float(bottom.sum() ** 2 / (bottom**2).sum()), level=level)

    def ratio(index: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = bottom[index].sum(1)
        return top[index].sum(1)[sums > 0] / sums[sums > 0]

    return _interval(float(top.sum() / bottom.sum()), _resample(len(top), ratio, resamples, seed), level)


def difference_interval(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Paired bootstrap interval of mean(first) - mean(second) for two models on the same items.

    first, second  [items] numbers or booleans, in the same order of items
    """
    one, two = _vector("first", first), _vector("second", second)
    _check_paired(one, two)
    return mean_interval(one - two, level=level, resamples=resamples, seed=seed)


def mcnemar(first: Sequence[bool] | ArrayLike, second: Sequence[bool] | ArrayLike) -> McNemar:
    """Exact McNemar test of two models on the same items: a binomial test on the items only one of them got right.

    first, second  [items] booleans: right or wrong
    Source: McNemar, Psychometrika 12 (1947) 153-157; exact form with p = 1/2, two-sided by doubling the smaller tail.
    """
    one, two = _vector("first", first) != 0, _vector("second", second) != 0
    _check_paired(one, two)
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, float(min(Fraction(1), Fraction(2 * tail, 2**discordant))))


def wilson(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson, Journal of the American Statistical Association 22 (1927) 209)."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"wilson: got {successes} successes in {trials} trials, expected 0 <= successes <= trials > 0")
    return wilson_interval(successes / trials, trials, level=level)


def wilson_interval(share: float, trials: float, *, level: float = 0.95) -> Interval:
    """The same of a share, of as many trials as it is worth: not always a whole number.

    Raises ValueError unless 0 <= share <= 1, trials > 0 and 0 < level < 1.
    """
    if not 0 <= share <= 1 or not trials > 0:
        raise ValueError(f"wilson_interval: got a share of {share} of {trials} trials, expected 0 to 1 of more than 0.")
    z = NormalDist().inv_cdf(_checked_level(level) / 2 + 0.5)
    spread = z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return Interval(
        share, 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)
    )


def _resample(
    items: int, statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], resamples: int, seed: int
) -> NDArray[np.float64]:
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // items)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([statistic(generator.integers(0, items, size=(size, items))) for size in sizes])


def _interval(estimate: float, resampled: NDArray[np.float64], level: float) -> Interval:
    outside = (1 - _checked_level(level)) / 2
    low, high = np.quantile(resampled, [outside, 1 - outside])
    return Interval(estimate, float(low), float(high))


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95")
    return level


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"{name}: got an array of shape {data.shape}, expected one finite number an item")
    return data


def _check_paired(first: NDArray, second: NDArray) -> None:
    if len(first) != len(second):
        raise ValueError(f"got {len(first)} and {len(second)} values, expected the same items in the same order")
