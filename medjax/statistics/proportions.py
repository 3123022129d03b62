"""Shares of records, of which a patient may have several: Wilson intervals on what the records are worth.

Records of a patient agree more than records of different ones, so n of them tell as much as n / d independent ones. d,
the design effect, is the variance of the share between patients over that of independent records, at least 1 (Korn and
Graubard, Survey Methodology 24 (1998) 193-201). A share of 0 or 1 shows no variance; there the patients are counted.
With one record a patient this is the plain Wilson interval, up to the factor n / (n - 1) of the variance.

Predictive values at another prevalence follow from sensitivity and specificity by Bayes' theorem. On the scale of log
odds they are a difference of two logarithms, whose interval is made from the limits of the two (method of variance
estimates recovery; Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import Estimate, patient_numbers, undefined
from medjax.statistics.intervals import wilson_interval


def share(
    hits: ArrayLike,
    among: ArrayLike | None = None,
    patients: Sequence[str | None] | ArrayLike | None = None,
    *,
    level: float = 0.95,
    nothing: str = "no record",
) -> Estimate:
    """Share of hits among the chosen records.

    hits      [records] booleans
    among     [records] booleans: the records that count; None: all
    patients  [records] as in `bootstrap.patient_numbers`
    nothing   the reason given where no record counts
    """
    hit = np.asarray(hits, dtype=bool)
    chosen = np.ones_like(hit) if among is None else np.asarray(among, dtype=bool)
    total = int(chosen.sum())
    if not total:
        return undefined(nothing)
    numbers = patient_numbers(patients, len(hit))[chosen]
    value = float(hit[chosen].mean())
    trials = _worth(hit[chosen], numbers, value)
    interval = wilson_interval(value, trials, level=level)
    method = "Wilson" if len(np.unique(numbers)) == total else "Wilson, by patient"
    return Estimate(value, interval.low, interval.high, method)


def predictive_values(sensitivity: Estimate, specificity: Estimate, prevalence: float) -> tuple[Estimate, Estimate]:
    """PPV and NPV where a share `prevalence` of those examined has the condition.

    Raises ValueError unless 0 < prevalence < 1.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence: got {prevalence}, expected a share between 0 and 1 such as 0.02.")
    missing = [estimate.reason for estimate in (sensitivity, specificity) if estimate.value is None]
    if missing:
        return undefined(missing[0]), undefined(missing[0])
    odds = prevalence / (1 - prevalence)
    return (
        _of_ratio(sensitivity, _complement(specificity), odds),
        _of_ratio(specificity, _complement(sensitivity), 1 / odds),
    )


def _worth(hit: NDArray[np.bool_], numbers: NDArray[np.int64], value: float) -> float:
    """How many independent records these are worth."""
    records, patients = len(hit), len(np.unique(numbers))
    if patients == records:
        return records
    if value in (0.0, 1.0) or patients == 1:
        return patients
    sums = np.bincount(numbers, weights=hit - value)
    between = patients / (patients - 1) * float((sums**2).sum()) / records**2
    effect = max(1.0, between / (value * (1 - value) / records))
    return records / effect


def _complement(estimate: Estimate) -> Estimate:
    value, low, high = (None if x is None else 1 - x for x in (estimate.value, estimate.high, estimate.low))
    return Estimate(value, low, high)


def _of_ratio(hits: Estimate, alarms: Estimate, odds: float) -> Estimate:
    """odds * hits / alarms, as a probability, with the interval of the difference of the two logarithms."""
    if hits.value == 0 and alarms.value == 0:
        return undefined("no record is called so")
    top, bottom = ((each.value or 0.0, each.low, each.high) for each in (hits, alarms))
    value = _probability(_log(top[0]) - _log(bottom[0]) + math.log(odds))
    if top[1] is None or top[2] is None or bottom[1] is None or bottom[2] is None:
        return Estimate(value, reason=hits.reason or alarms.reason)
    low = _limit(top[0], top[1], bottom[0], bottom[2])
    high = -_limit(bottom[0], bottom[1], top[0], top[2])
    return Estimate(
        value, _probability(low + math.log(odds)), _probability(high + math.log(odds)), "from sensitivity, specificity"
    )


def _limit(top: float, top_low: float, bottom: float, bottom_high: float) -> float:
    """Lower limit of log(top) - log(bottom)."""
    t, tl, b, bh = map(_log, (top, top_low, bottom, bottom_high))
    if math.isinf(t):  # top is 0, so is its lower limit
        return -math.inf
    if math.isinf(b):  # the limit of the formula as the logarithm of bottom goes to minus infinity
        return t - bh
    if math.isinf(tl):
        return -math.inf
    return t - b - math.hypot(t - tl, bh - b)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _probability(log_odds: float) -> float:
    if log_odds == math.inf:
        return 1.0
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
