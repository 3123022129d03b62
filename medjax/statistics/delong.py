"""Variance of the AUROC without resampling: intervals and the paired test of DeLong, DeLong and Clarke-Pearson.

Biometrics 44 (1988) 837-845. Each positive has a placement, the share of negatives that score below it, and each
negative likewise; the AUROC is their mean and its variance follows from theirs. Placements come from midranks in
O(n log n) (Sun and Xu, IEEE Signal Processing Letters 21 (2014) 1389-1393). Records of a patient are alike: placements
are summed by patient, and a patient with records of both classes adds a covariance (Obuchowski, Biometrics 53 (1997)
567-578); with one record a patient this is DeLong's own formula.

The interval is made on the logit scale, so it stays inside 0 and 1 (Pepe, The Statistical Evaluation of Medical Tests,
2003, section 5.2). Where the variance is 0, as with perfect separation, the interval is Newcombe's score-like method 5
(Statistics in Medicine 25 (2006) 559-573), which asks only for the two counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from medjax.statistics.bootstrap import Estimate, Floats, patient_numbers, undefined
from medjax.statistics.discrimination import checked, one_class


@dataclass(frozen=True)
class PairedTest:
    """Difference of two AUROCs on the same records, second minus first, and the two-sided p-value that it is 0."""

    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float | None


def covariance(
    labels: ArrayLike, scores: Sequence[ArrayLike], patients: Sequence[str | None] | ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """AUROCs of several models on the same records and their covariance.

    labels    [records] 0 or 1, both there
    scores    of each model [records]
    patients  [records]; None: every record is a patient
    returns   [models], [models, models]; NaN covariance with fewer than two positives or two negatives

    Raises ValueError when a class is absent.
    """
    y, _ = checked(labels, scores[0])
    if reason := one_class(y):
        raise ValueError(f"labels: {reason}, expected positive and negative ones.")
    table = np.stack([checked(y, one)[1] for one in scores])
    numbers = patient_numbers(patients, len(y))
    m, n = int(y.sum()), int((~y).sum())
    ranks, among_positives, among_negatives = _midranks(table), _midranks(table[:, y]), _midranks(table[:, ~y])
    placed_positives = (ranks[:, y] - among_positives) / n
    placed_negatives = 1 - (ranks[:, ~y] - among_negatives) / m
    areas = placed_positives.mean(1)
    by_positives, with_positives = _sums(placed_positives - areas[:, None], numbers[y], numbers)
    by_negatives, with_negatives = _sums(placed_negatives - areas[:, None], numbers[~y], numbers)
    if with_positives < 2 or with_negatives < 2:
        return areas, np.full((len(areas), len(areas)), np.nan)
    total = int(numbers.max()) + 1
    own_positives = with_positives / ((with_positives - 1) * m * m) * by_positives @ by_positives.T
    own_negatives = with_negatives / ((with_negatives - 1) * n * n) * by_negatives @ by_negatives.T
    shared = total / ((total - 1) * m * n) * by_positives @ by_negatives.T
    return areas, own_positives + own_negatives + shared + shared.T


def interval(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: Sequence[str | None] | ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """AUROC with its interval; undefined, with the reason, when a class is absent."""
    y, s = checked(labels, scores)
    if reason := one_class(y):
        return undefined(reason)
    areas, variances = covariance(y, [s], patients)
    numbers = patient_numbers(patients, len(y))
    # the patients, not the records, bear the information
    sizes = len(np.unique(numbers[y])), len(np.unique(numbers[~y]))
    return _logit_interval(float(areas[0]), float(variances[0, 0]), sizes, level)


def compare(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patients: Sequence[str | None] | ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> PairedTest:
    """Paired test of two models on the same records; the difference is second minus first."""
    y, one = checked(labels, first)
    _, two = checked(labels, second)
    if reason := one_class(y):
        nothing = undefined(reason)
        return PairedTest(nothing, nothing, nothing, None)
    areas, variances = covariance(y, [one, two], patients)
    gap = float(areas[1] - areas[0])
    variance = float(variances[0, 0] + variances[1, 1] - 2 * variances[0, 1])
    estimates = interval(y, one, patients, level=level), interval(y, two, patients, level=level)
    # equal scores leave rounding errors only
    if not variance > 1e-15:
        reason = "the variance of the difference is 0 or cannot be estimated: no interval can be given"
        return PairedTest(*estimates, Estimate(gap, reason=reason), 1.0 if gap == 0 else None)
    spread = math.sqrt(variance)
    half = _z(level) * spread
    p = math.erfc(abs(gap) / spread / math.sqrt(2))
    return PairedTest(*estimates, Estimate(gap, gap - half, gap + half, "DeLong, paired"), p)


def newcombe(area: float, positives: int, negatives: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC from the area and the two counts alone; never of width 0.

    Source: Newcombe, Statistics in Medicine 25 (2006) 559-573, method 5.
    """
    z, pairs = _z(level), positives * negatives
    more = (positives + negatives) / 2 - 1

    def excess(true: float) -> float:
        variance = true * (1 - true) * (1 + more * ((1 - true) / (2 - true) + true / (1 + true))) / pairs
        return (area - true) ** 2 - z * z * variance

    return _root(excess, area, 0.0), _root(excess, area, 1.0)


def _logit_interval(area: float, variance: float, sizes: tuple[int, int], level: float) -> Estimate:
    if not (0 < area < 1 and variance > 0):
        low, high = newcombe(area, *sizes, level=level)
        return Estimate(area, low, high, "Newcombe, method 5", "no variance can be estimated from these records")
    half = _z(level) * math.sqrt(variance) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    return Estimate(area, _logistic(centre - half), _logistic(centre + half), "DeLong, logit")


def _midranks(table: Floats) -> Floats:
    """Ranks from 1 in each row; equal scores share the mean of theirs."""
    return rankdata(table, axis=1)


def _sums(values: Floats, owners: NDArray[np.int64], everyone: NDArray[np.int64]) -> tuple[Floats, int]:
    """Sums by patient [models, patients], and how many patients have a record here."""
    patients = int(everyone.max()) + 1
    sums = np.zeros((len(values), patients))
    for row, one in zip(values, sums, strict=True):
        np.add.at(one, owners, row)
    return sums, len(np.unique(owners))


def _root(function: Callable[[float], float], inside: float, end: float) -> float:
    """Where function, not positive at `inside`, changes sign on the way to `end`; `end` itself if it does not."""
    if function(end) <= 0:
        return end
    for _ in range(200):
        middle = (inside + end) / 2
        if function(middle) <= 0:
            inside = middle
        else:
            end = middle
    return (inside + end) / 2


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95.")
    return NormalDist().inv_cdf(level / 2 + 0.5)
