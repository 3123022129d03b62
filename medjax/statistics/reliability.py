"""Whether probabilities mean what they say: Brier score, calibration error, reliability curve, slope and intercept.

Bins are cut on all records and stay where they are in the bootstrap. Bins of equal width suit probabilities that spread
out; bins of equal mass are the fairer ones for a rare condition, where almost all records share one bin of equal width.
The expected calibration error, sum over bins of (share of records) * |observed - predicted|, cannot be below 0 and so
lies above its true value in small samples (Kumar et al., NeurIPS 2019), and in resamples above that. Its interval is
therefore the basic one, the percentiles reflected at the estimate (Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 5.2), which takes a good part of that back; look at the slope beside it: 1 is right, below 1
means predictions too extreme (Cox, Biometrika 45 (1958) 562-565).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import (
    Estimate,
    Floats,
    PatientBootstrap,
    Statistic,
    sums_by_bin,
    undefined,
    weighted_mean,
)
from medjax.statistics.calibration import logistic_fits, logit
from medjax.statistics.discrimination import checked, one_class
from medjax.statistics.proportions import share

BINS = 10
_LEAST = 1e-7  # probabilities closer to 0 or 1 than float32 can say count as this far


def brier(labels: ArrayLike, probabilities: ArrayLike) -> Statistic:
    """The statistic: mean of (probability - label) squared."""
    y, p = _checked(labels, probabilities)
    return weighted_mean((p - y) ** 2)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> Statistic:
    """The statistic: mean of -log(probability given to what was the case), in nats."""
    y, p = _checked(labels, probabilities)
    return weighted_mean(-np.log(np.clip(np.where(y, p, 1 - p), _LEAST, 1)))


def bins(probabilities: ArrayLike, count: int = BINS, *, mass: bool) -> NDArray[np.int64]:
    """The bin of each record, cut at equal widths of [0, 1] or at quantiles; the right edge belongs to the bin."""
    p = np.asarray(probabilities, dtype=np.float64)
    edges = np.quantile(p, np.linspace(0, 1, count + 1)) if mass else np.linspace(0, 1, count + 1)
    return np.searchsorted(edges[1:-1], p)


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, count: int = BINS, *, mass: bool
) -> Statistic:
    """The statistic: mean over records of |observed share - mean probability| of the record's bin."""
    y, p = _checked(labels, probabilities)
    place = bins(p, count, mass=mass)
    excess = sums_by_bin(y - p, place, count)  # records * (observed - predicted) of each bin
    return lambda weights: np.abs(excess(weights)).sum(1) / weights.sum(1)


def slope_and_intercept(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Statistic, Statistic]:
    """The statistics: slope of the logistic regression of the label on the logit; intercept where the slope is 1."""
    y, p = _checked(labels, probabilities)
    z = logit(np.clip(p, _LEAST, 1 - _LEAST))

    def slope(weights: Floats) -> Floats:
        return logistic_fits(z, y.astype(np.float64), weights, smooth=False)[:, 0]

    def intercept(weights: Floats) -> Floats:
        return logistic_fits(z, y.astype(np.float64), weights, smooth=False, slope=1.0)[:, 1]

    return slope, intercept


def reliability_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike | None = None,
    count: int = BINS,
    *,
    mass: bool = True,
) -> list[dict[str, Any]]:
    """One entry for each bin that holds a record, in ascending order: mean_predicted, observed, low, high, records."""
    y, p = _checked(labels, probabilities)
    place = bins(p, count, mass=mass)
    curve = []
    for number in np.unique(place):
        chosen = place == number
        observed = share(y, chosen, patients)
        curve.append(
            {
                "mean_predicted": float(p[chosen].mean()),
                "observed": observed.value,
                "low": observed.low,
                "high": observed.high,
                "records": int(chosen.sum()),
            }
        )
    return curve


def summary(labels: ArrayLike, probabilities: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates: brier, log_loss, ece_width, ece_mass, slope, intercept."""
    y, p = _checked(labels, probabilities)
    slope, intercept = slope_and_intercept(y, p)
    wanted = {
        "brier": brier(y, p),
        "log_loss": log_loss(y, p),
        "ece_width": expected_calibration_error(y, p, mass=False),
        "ece_mass": expected_calibration_error(y, p, mass=True),
    }
    reason = one_class(y)
    found = bootstrap.estimates(wanted if reason else {**wanted, "slope": slope, "intercept": intercept})
    for name in ("ece_width", "ece_mass"):
        found[name] = _reflected(found[name])
    if reason:
        return {**found, **dict.fromkeys(("slope", "intercept"), undefined(reason))}
    if found["slope"].value is None:
        found["slope"] = undefined("a threshold separates the classes perfectly, or all probabilities are equal")
    return found


def _reflected(percentiles: Estimate) -> Estimate:
    """The basic interval of an error that cannot be below 0; it always holds the estimate."""
    value, low, high = percentiles.value, percentiles.low, percentiles.high
    if value is None or low is None or high is None:
        return percentiles
    ends = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
    return Estimate(value, *ends, f"basic {percentiles.method}", percentiles.reason)


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    y, p = checked(labels, probabilities)
    if len(p) and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"probabilities: got {p.min():g} to {p.max():g}, expected numbers from 0 to 1.")
    return y, p
