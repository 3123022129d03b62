"""How close predicted numbers come to measured ones: errors, Bland-Altman agreement, and the age gap.

Differences are always predicted minus true. Limits of agreement are bias -+ 1.96 standard deviations of the differences
(Bland and Altman, Lancet 327 (1986) 307-310).

A regression on noisy inputs draws the extremes to the mean, so young people look older and old ones younger than they
are, and the raw gap (predicted minus chronological age) mostly says how old somebody is. The correction fits
predicted = slope * age + intercept on validation data and takes the fitted part out of a new prediction:

  corrected = predicted + age - (slope * age + intercept)

(de Lange and Cole, NeuroImage: Clinical 26 (2020) 102229; the same as subtracting a line fitted to the gap, Beheshti et
al., NeuroImage: Clinical 24 (2019) 102063). It uses the true age: a corrected prediction is for gaps only, and its MAE
or r must not be quoted as the model's accuracy (Butler et al., Human Brain Mapping 42 (2021) 4092-4101).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medjax.statistics.bootstrap import Estimate, Floats, PatientBootstrap, Statistic, weighted_mean
from medjax.statistics.stored import checked_fields

LIMIT = NormalDist().inv_cdf(0.975)  # standard deviations on either side that hold 95 % of normal numbers
SMALL = 20  # fewer records than this are marked as few


@dataclass(frozen=True)
class GapCorrection:
    """predicted = slope * age + intercept, as fitted on `records` records of `origin`.

    reason  why the line is the identity (nothing was fitted), or ""
    """

    slope: float
    intercept: float
    records: int
    origin: str = ""
    reason: str = ""

    def apply(self, predicted: ArrayLike, age: ArrayLike) -> Floats:
        """Corrected predictions, years; both [records]."""
        true = np.asarray(age, dtype=np.float64)
        return np.asarray(predicted, dtype=np.float64) + true - (self.slope * true + self.intercept)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GapCorrection":
        """The inverse of to_json. Raises ValueError where a field is missing or unknown."""
        return cls(**checked_fields(cls, value))


def fit_gap_correction(age: ArrayLike, predicted: ArrayLike, *, origin: str = "validation") -> GapCorrection:
    """Fit the line by least squares; both [records], years.

    With fewer than three records, or all of one age, the identity comes back with the reason.
    """
    x, y = checked(age, predicted)
    if len(x) < 3 or x.std() == 0:
        what = f"{len(x)} records" if len(x) < 3 else f"all {len(x)} records are {x[0]:g} years old"
        return GapCorrection(1.0, 0.0, len(x), origin, f"{what}: no correction can be fitted")
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return GapCorrection(slope, float(y.mean() - slope * x.mean()), len(x), origin)


def checked(true: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64; raises ValueError unless they are vectors of finite numbers of one length."""
    x, y = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"true, predicted: got shapes {x.shape} and {y.shape}, expected one of each a record.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("true, predicted: got numbers that are not finite; leave records of unknown value out.")
    return x, y


def error_statistics(true: ArrayLike, predicted: ArrayLike) -> dict[str, Statistic]:
    """The statistics mae, rmse, r2, r, bias and slope (of predicted on true); NaN where they need a spread."""
    x, y = checked(true, predicted)
    d = y - x
    squared = weighted_mean(d**2)
    return {
        "mae": weighted_mean(np.abs(d)),
        "rmse": lambda w: np.sqrt(squared(w)),
        "r2": lambda w: 1 - squared(w) / _moments(x, y, w)[0],
        "r": lambda w: _correlation(*_moments(x, y, w)),
        "bias": weighted_mean(d),
        "slope": lambda w: _slope(*_moments(x, y, w)),
    }


def errors(true: ArrayLike, predicted: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates of `error_statistics`."""
    return bootstrap.estimates(error_statistics(true, predicted))


def bland_altman(true: ArrayLike, predicted: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates: bias, sd, lower_limit, upper_limit of predicted minus true; intervals by patient."""
    x, y = checked(true, predicted)
    d = y - x

    def limit(times: float) -> Statistic:
        return lambda w: w @ d / w.sum(1) + times * _sd(d, w)

    return bootstrap.estimates(
        {
            "bias": weighted_mean(d),
            "sd": lambda w: _sd(d, w),
            "lower_limit": limit(-LIMIT),
            "upper_limit": limit(LIMIT),
        }
    )


def gap(age: ArrayLike, predicted: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates of the age gap: mean, sd, correlation_with_age (0 is what a corrected gap should have)."""
    x, y = checked(age, predicted)
    d = y - x
    return bootstrap.estimates(
        {
            "mean": weighted_mean(d),
            "sd": lambda w: _sd(d, w),
            "correlation_with_age": lambda w: _correlation(*_moments(x, d, w)),
        }
    )


def by_decade(age: ArrayLike, predicted: ArrayLike, bootstrap: PatientBootstrap) -> list[dict[str, Any]]:
    """Bias and MAE of each decade of true age that holds a record: from, to, records, patients, small, bias, mae.

    bootstrap  over these records; a decade without a patient in a resample is left out of that resample
    """
    x, y = checked(age, predicted)
    d = y - x
    rows = []
    for decade in np.unique(np.floor(x / 10).astype(int)):
        chosen = np.floor(x / 10) == decade
        found = bootstrap.estimates(
            {"bias": chosen_mean(d, chosen), "mae": chosen_mean(np.abs(d), chosen)},
        )
        patients = len(np.unique(bootstrap.numbers[chosen]))
        rows.append(
            {
                "from": int(10 * decade),
                "to": int(10 * decade + 10),
                "records": int(chosen.sum()),
                "patients": patients,
                "small": int(chosen.sum()) < SMALL,
                **{name: _of_few(estimate, patients) for name, estimate in found.items()},
            }
        )
    return rows


def chosen_mean(values: ArrayLike, chosen: ArrayLike) -> Statistic:
    """The statistic that is a mean over the chosen records; NaN where a resample holds none of them."""
    inside = np.asarray(chosen, dtype=np.float64)
    column = np.asarray(values, dtype=np.float64) * inside

    def statistic(weights: Floats) -> Floats:
        total = weights @ inside
        return weights @ column / np.where(total == 0, np.nan, total)

    return statistic


def _of_few(estimate: Estimate, patients: int) -> Estimate:
    """A single patient resampled gives the same number again, which is no interval."""
    if patients > 1 or estimate.value is None:
        return estimate
    return Estimate(estimate.value, reason="one patient: no interval can be given")


def _moments(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted variances of x and y and their covariance (divided by n); NaN instead of a variance of 0."""
    # centred on the whole sample first, so that little is lost in the subtraction
    x, y, total = x - x.mean(), y - y.mean(), weights.sum(1)
    columns = np.stack([x, y, x * x, y * y, x * y], axis=1)
    mx, my, xx, yy, xy = (weights @ columns / total[:, None]).T
    xx, yy = xx - mx**2, yy - my**2
    floor = 1e-14
    return (
        np.where(xx > floor * (x * x).mean(), xx, np.nan),
        np.where(yy > floor * (y * y).mean(), yy, np.nan),
        xy - mx * my,
    )


def _correlation(xx: Floats, yy: Floats, xy: Floats) -> Floats:
    return xy / np.sqrt(xx * yy)


def _slope(xx: Floats, _: Floats, xy: Floats) -> Floats:
    return xy / xx


def _sd(values: Floats, weights: Floats) -> Floats:
    """Standard deviation with n - 1."""
    total, centred = weights.sum(1), values - values.mean()
    mean = weights @ centred / total
    variance = np.maximum(weights @ centred**2 / total - mean**2, 0) * total / np.where(total > 1, total - 1, np.nan)
    return np.sqrt(variance)
