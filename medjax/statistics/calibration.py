"""From logits to probabilities that mean what they say: temperature and Platt scaling, fitted on validation data.

  none         p = sigmoid(z)
  temperature  p = sigmoid(a z)         Guo et al., ICML 2017; a = 1 / T; keeps the side of 0.5
  platt        p = sigmoid(a z + b)     Platt 1999; also moves the whole, as a prevalence that differs asks for

Fitted by Newton's method on the log loss, with Platt's targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1 and 0,
so that a model which separates the validation data still gets finite numbers (Lin, Lin and Weng, Machine Learning 68
(2007) 267-276). The fit is repeated on resamples of patients and those (a, b) are kept: pushed through them, the logit
of one new record gets an interval. It says how well the probability of records with this logit is known; it is no
statement about the one patient, nor does it hold the uncertainty of the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from medjax.statistics.bootstrap import Floats, PatientBootstrap
from medjax.statistics.discrimination import checked, one_class
from medjax.statistics.stored import checked_fields

METHODS = ("platt", "temperature", "none")
DRAWS = 200
_STEPS = 100
_STEEPEST = 1e4  # a slope that grows beyond this has no end: the classes are separated


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope * logit + intercept), with the same pair fitted on resamples of patients.

    method  one of METHODS
    draws   (slope, intercept) a resample; empty where nothing was fitted
    origin  the data it was fitted on, such as "validation, 512 records"
    reason  why nothing was fitted although it was wanted, or ""
    """

    method: str
    slope: float
    intercept: float
    draws: tuple[tuple[float, float], ...] = ()
    origin: str = ""
    reason: str = ""

    def apply(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities of logits, any shape."""
        return sigmoid(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def interval(self, logits: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats] | None:
        """Low and high of the calibrated probability, in the shape of logits; None where nothing was fitted."""
        if not self.draws:
            return None
        if not 0 < level < 1:
            raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95.")
        z, (a, b) = np.asarray(logits, dtype=np.float64), np.array(self.draws).T
        ends = [(1 - level) / 2, (1 + level) / 2]
        # the sigmoid keeps the order, so quantiles are taken before it
        low, high = np.quantile(z[..., None] * a + b, ends, axis=-1)
        return sigmoid(low), sigmoid(high)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "draws": [list(pair) for pair in self.draws]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """The inverse of to_json. Raises ValueError where a field is missing or unknown."""
        known = checked_fields(cls, value)
        return cls(**{**known, "draws": tuple((float(a), float(b)) for a, b in known["draws"])})


def fit(
    labels: ArrayLike,
    logits: ArrayLike,
    patients: Sequence[str | None] | ArrayLike,
    method: str = "platt",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    origin: str = "validation",
) -> Calibration:
    """Fit a calibration.

    labels, logits, patients  [records]

    With fewer than two records of a class, or a slope that is not positive, method "none" comes back, with the reason.
    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}.")
    y, z = checked(labels, logits)
    origin = f"{origin}, {len(y):,} records"
    if method == "none":
        return Calibration("none", 1.0, 0.0, origin=origin)
    fewest = int(min(y.sum(), (~y).sum()))
    if fewest < 2:
        reason = one_class(y) or "one class has a single record"
        return Calibration("none", 1.0, 0.0, origin=origin, reason=f"{reason}: no calibration can be fitted")
    intercept = 0.0 if method == "temperature" else None
    targets = y.astype(np.float64)
    slope, shift = logistic_fits(z, targets, np.ones((1, len(z))), smooth=True, intercept=intercept)[0]
    if not slope > 0:  # by chance or by mistake; turned round, the model would contradict its own ranking
        reason = "higher outputs did not mean more positives there: no calibration can be fitted"
        return Calibration("none", 1.0, 0.0, origin=origin, reason=reason)
    bootstrap = PatientBootstrap(patients, resamples=draws, seed=seed)
    pairs = bootstrap.draws(lambda weights: logistic_fits(z, targets, weights, smooth=True, intercept=intercept))
    pairs = pairs[np.isfinite(pairs).all(1)] if bootstrap.patients > 1 else pairs[:0]
    kept = tuple((float(f"{a:.7g}"), float(f"{b:.7g}")) for a, b in pairs)
    return Calibration(method, float(slope), float(shift), kept, origin)


def logistic_fits(
    logits: Floats,
    targets: Floats,
    weights: Floats,
    *,
    smooth: bool,
    slope: float | None = None,
    intercept: float | None = None,
) -> Floats:
    """Logistic regressions of targets on logits, one for each row of weights.

    logits, targets   [records]; targets 0 or 1
    weights           [rows, records]
    smooth            Platt's targets, from the weighted counts of each row
    slope, intercept  fixed at this value instead of fitted; one of them at most
    returns           [rows, 2] slope and intercept; NaN for a row with one class, without an end (classes separated) or
                      where logits do not differ
    """
    free = np.array([slope is None, intercept is None])
    powers = np.stack([logits, np.ones_like(logits), logits**2], axis=1)
    positives, all_sums = weights @ (targets[:, None] * powers[:, :2]), weights @ powers[:, :2]
    counts = np.stack([all_sums[:, 1] - positives[:, 1], positives[:, 1]])
    wanted = positives
    if smooth:
        low, high = 1 / (counts[0] + 2), (counts[1] + 1) / (counts[1] + 2)
        wanted = high[:, None] * positives + low[:, None] * (all_sums - positives)
    fitted = np.full((len(weights), 2), np.nan)
    rows = np.flatnonzero((counts > 0).all(0))
    begin = np.array([0.0 if slope is None else slope, 0.0 if intercept is None else intercept])
    if len(weights) > 1:  # resamples lie near the fit of all records
        whole = np.ones((1, len(logits)))
        near = logistic_fits(logits, targets, whole, smooth=smooth, slope=slope, intercept=intercept)[0]
        begin = begin if np.isnan(near).any() else near
    fitted[rows] = begin
    reach = np.abs(logits).max(initial=0.0)
    for number in range(_STEPS):
        if not len(rows):
            break
        w = weights if len(rows) == len(weights) else weights[rows]
        old = fitted[rows]
        # all begin at one place, so the first step needs no more than products of matrices
        step = _newton_step(begin[None] if number == 0 else old, powers, wanted[rows], w, free)
        # a step that moves no logit by more than 1 is safe; a longer one is shortened until the loss falls
        for row in np.flatnonzero(np.abs(step[:, 0]) * reach + np.abs(step[:, 1]) > 1):
            step[row] *= _shortening(old[row], step[row], logits, wanted[rows[row]], w[row])
        fitted[rows] = old + step
        fitted[rows[np.abs(fitted[rows, 0]) > _STEEPEST]] = np.nan
        # Newton's steps square the error: after one of 3e-5 about 1e-9 is left
        open_still = np.abs(step).max(1) > 3e-5 * (1 + np.abs(old).max(1))
        rows = rows[open_still & ~np.isnan(fitted[rows, 0])]
    fitted[rows] = np.nan
    return fitted


def sigmoid(x: ArrayLike) -> Floats:
    return expit(x)


def logit(p: ArrayLike) -> Floats:
    return np.log(p) - np.log1p(-np.asarray(p))


def _newton_step(fitted: Floats, powers: Floats, wanted: Floats, weights: Floats, free: NDArray[np.bool_]) -> Floats:
    """[rows, 2]; fitted [rows, 2] or [1, 2], powers [records, 3] (logit, 1, its square), wanted [rows, 2] sums."""
    p = expit(fitted[:, :1] * powers[:, 0] + fitted[:, 1:])
    if len(fitted) == 1:
        got, h = weights @ (p.T * powers[:, :2]), weights @ ((p * (1 - p)).T * powers)
    else:
        mass = weights * p
        got = mass @ powers[:, :2]
        h = np.multiply(mass, np.subtract(1, p, out=p), out=mass) @ powers
    gradient = (wanted - got) * free
    cross, constant, square = h.T
    with np.errstate(divide="ignore", invalid="ignore"):
        if not free.all():
            return np.where(free, gradient / np.stack([square, constant], axis=1), 0.0)
        determinant = square * constant - cross**2
        # logits that do not differ leave nothing to fit a slope by; classes that are separated leave no curvature
        solvable = (determinant > 1e-12 * square * constant) & (constant > 1e-9 * weights.sum(1))
        determinant = np.where(solvable, determinant, np.nan)
        by_slope, by_shift = gradient.T
        turned = np.stack([constant * by_slope - cross * by_shift, square * by_shift - cross * by_slope], axis=1)
        return turned / determinant[:, None]


def _shortening(fitted: Floats, step: Floats, logits: Floats, wanted: Floats, weights: Floats) -> float:
    """The largest of 1, 1/2, 1/4, … with which the step lowers the loss."""

    def loss(pair: Floats) -> float:
        return float((weights * np.logaddexp(0, pair[0] * logits + pair[1])).sum() - pair @ wanted)

    before, factor = loss(fitted), 1.0
    while factor > 1e-9 and not loss(fitted + factor * step) < before:
        factor /= 2
    return factor
