"""How well scores separate two classes: ROC, precision-recall, and the areas under them, for many weightings at once.

`Ranking` sorts the records once. Its methods take weights [resamples, records], as the bootstrap makes them, and work
on sums over records of equal score, so ties count half in the AUROC and are one point of either curve:

  score      0.2  0.7  0.7  0.9
  label        0    1    0    1        AUROC = (1 * 1.5 + 1 * 2) / (2 * 2) = 0.875

A record is called positive when its score is at least the threshold. AUPRC is average precision: sum over thresholds of
(recall gained) * (precision there), without interpolation (Davis and Goadrich, ICML 2006, on why not to interpolate).
Where a class is absent the areas are undefined: NaN here, None with a reason once they are an Estimate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import Estimate, Floats, PatientBootstrap, Statistic, undefined


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Labels as booleans and scores as float64; raises ValueError unless labels are 0 or 1 and scores finite."""
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels, scores: got shapes {y.shape} and {s.shape}, expected one label and score a record.")
    if not np.isin(y, (0, 1)).all():
        found = sorted({str(value) for value in y[~np.isin(y, (0, 1))]})[:3]
        raise ValueError(f"labels: got {', '.join(found)}, expected 0 or 1; leave records of unknown label out.")
    if not np.isfinite(s).all():
        raise ValueError(f"scores: got {int((~np.isfinite(s)).sum())} of {len(s)} not finite, expected numbers.")
    return y.astype(bool), s


def one_class(labels: NDArray[np.bool_]) -> str:
    """The reason why nothing can be said of separation, "" when both classes are there."""
    if not len(labels):
        return "no record has a known label"
    if labels.all() or not labels.any():
        return f"all {len(labels):,} records are {'positive' if labels.all() else 'negative'}"
    return ""


class Ranking:
    """Records in descending order of score, with labels.

    thresholds  [distinct scores], descending
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike):
        y, s = checked(labels, scores)
        self.labels = y
        self._order = np.argsort(-s, kind="stable")
        ranked = s[self._order]
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(s) else np.zeros(0, np.int64)
        self.thresholds = ranked[self._starts]
        self._positive = y[self._order].astype(np.float64)
        self._ties = len(self._starts) < len(s)

    def counts(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """True and false positives at each threshold: two arrays [resamples, thresholds]; weights None: all ones."""
        w = np.ones((1, len(self._order))) if weights is None else weights[:, self._order]
        positive = w * self._positive
        if self._ties:
            positive = np.add.reduceat(positive, self._starts, axis=1)
            w = np.add.reduceat(w, self._starts, axis=1)
        tp, called = np.cumsum(positive, axis=1), np.cumsum(w, axis=1)
        return tp, called - tp

    def auroc(self, weights: Floats | None = None) -> Floats:
        """[resamples]: P(score of a positive > that of a negative) + half of P(equal)."""
        tp, fp = self.counts(weights)
        # trapezoids: a tie is a slanted piece, which counts it half
        area = fp[:, 0] * tp[:, 0] + (np.diff(fp) * (tp[:, 1:] + tp[:, :-1])).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return area / (2 * tp[:, -1] * fp[:, -1])

    def auprc(self, weights: Floats | None = None) -> Floats:
        """[resamples]: average precision."""
        tp, fp = self.counts(weights)
        gained = np.diff(tp, prepend=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # before the first record drawn nothing is called positive, and nothing gained either
            area = (gained * np.where(gained > 0, tp / (tp + fp), 0)).sum(1) / tp[:, -1]
        return np.where(fp[:, -1] > 0, area, np.nan)

    def sensitivity_at(self, specificity: float) -> Statistic:
        """The statistic: the best sensitivity of all thresholds whose specificity is at least this."""

        def statistic(weights: Floats) -> Floats:
            tp, fp = self.counts(weights)
            with np.errstate(divide="ignore", invalid="ignore"):
                # one rounding above the bound still meets it
                allowed = fp <= (1 - specificity) * fp[:, -1:] * (1 + 1e-12)
                return np.where(fp[:, -1] > 0, np.where(allowed, tp, 0).max(1) / tp[:, -1], np.nan)

        return statistic

    def specificity_at(self, sensitivity: float) -> Statistic:
        """The statistic: the best specificity of all thresholds whose sensitivity is at least this."""

        def statistic(weights: Floats) -> Floats:
            tp, fp = self.counts(weights)
            with np.errstate(divide="ignore", invalid="ignore"):
                reached = tp >= sensitivity * tp[:, -1:] * (1 - 1e-12)
                least = np.where(reached, fp, np.inf).min(1)
                return np.where(tp[:, -1] > 0, 1 - least / fp[:, -1], np.nan)

        return statistic

    def sensitivity_on(self, grid: ArrayLike) -> Statistic:
        """The statistic: sensitivity at each false-positive rate, linear between points: [resamples, grid]."""
        rates = np.asarray(grid, dtype=np.float64)

        def statistic(weights: Floats) -> Floats:
            tp, fp = self.counts(weights)
            rows = []
            for hits, alarms in zip(tp, fp, strict=True):
                if hits[-1] == 0 or alarms[-1] == 0:
                    rows.append(np.full(len(rates), np.nan))
                    continue
                # of a vertical piece the upper end counts
                last = np.r_[alarms[1:] != alarms[:-1], True]
                x, y = np.r_[0.0, alarms[last]] / alarms[-1], np.r_[0.0, hits[last]] / hits[-1]
                rows.append(np.interp(rates, x[1:] if x[1] == 0 else x, y[1:] if x[1] == 0 else y))
            return np.array(rows)

        return statistic

    def roc(self) -> tuple[Floats, Floats, Floats]:
        """False-positive rate, sensitivity and threshold, from (0, 0, inf) on; corners only."""
        tp, fp = self.counts()
        x, y = fp[0], tp[0]
        inner = (np.diff(x, 2) != 0) | (np.diff(y, 2) != 0)
        keep = np.r_[True, inner, True] if len(x) > 1 else np.array([True])
        return np.r_[0, x[keep]] / x[-1], np.r_[0, y[keep]] / y[-1], np.r_[np.inf, self.thresholds[keep]]

    def precision_recall(self) -> tuple[Floats, Floats, Floats]:
        """Recall, precision and threshold, recall ascending."""
        tp, fp = self.counts()
        return tp[0] / tp[0, -1], tp[0] / (tp[0] + fp[0]), self.thresholds


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve, None when a class is absent."""
    return _area(labels, scores, "auroc")


def auprc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision, None when a class is absent."""
    return _area(labels, scores, "auprc")


def areas(labels: ArrayLike, scores: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates "auroc" and "auprc" with intervals by patient; undefined, with the reason, when a class is absent."""
    y, s = checked(labels, scores)
    if reason := one_class(y):
        return dict.fromkeys(("auroc", "auprc"), undefined(reason))
    ranking = Ranking(y, s)
    return bootstrap.estimates({"auroc": ranking.auroc, "auprc": ranking.auprc})


def macro_areas(
    labels: Mapping[str, ArrayLike], scores: Mapping[str, ArrayLike], bootstrap: PatientBootstrap
) -> dict[str, Any]:
    """Unweighted means over classes of AUROC and AUPRC; classes whose areas are undefined are left out and named.

    labels, scores  class -> [records]; a label NaN is unknown, and the record counts for the other classes
    returns         "auroc", "auprc" (Estimate), "classes", "left_out" (class -> reason)
    """
    rankings: list[tuple[NDArray[np.bool_], Ranking]] = []
    classes, left_out = [], {}
    for name, column in labels.items():
        values = np.asarray(column, dtype=np.float64)
        known = np.isfinite(values)
        y, s = checked(values[known], np.asarray(scores[name], dtype=np.float64)[known])
        if reason := one_class(y):
            left_out[name] = reason
            continue
        classes.append(name)
        rankings.append((known, Ranking(y, s)))
    if not classes:
        nothing = undefined("no class has both positive and negative records")
        return {"auroc": nothing, "auprc": nothing, "classes": [], "left_out": left_out}

    def mean(area: str) -> Statistic:
        return lambda weights: np.mean([getattr(r, area)(weights[:, known]) for known, r in rankings], axis=0)

    found = bootstrap.estimates({area: mean(area) for area in ("auroc", "auprc")})
    return {**found, "classes": classes, "left_out": left_out}


def paired_difference(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, Estimate]:
    """Second minus first of AUROC and AUPRC for two models on the same records, on the same resamples of patients."""
    y, one = checked(labels, first)
    _, two = checked(labels, second)
    if reason := one_class(y):
        return dict.fromkeys(("auroc", "auprc"), undefined(reason))
    a, b = Ranking(y, one), Ranking(y, two)
    return bootstrap.estimates({"auroc": lambda w: b.auroc(w) - a.auroc(w), "auprc": lambda w: b.auprc(w) - a.auprc(w)})


def spread(count: int, most: int) -> Sequence[int] | NDArray[np.int64]:
    """Evenly spread positions, first and last among them, so that a curve of many points can be stored."""
    return range(count) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _area(labels: ArrayLike, scores: ArrayLike, which: str) -> float | None:
    y, s = checked(labels, scores)
    return None if one_class(y) else float(getattr(Ranking(y, s), which)()[0])
