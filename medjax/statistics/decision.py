"""What acting on a model is worth, and what is gained where it may abstain.

Decision curve: at a threshold t a false alarm costs t / (1 - t) of what a true case found is worth, so acting on the
model brings a net benefit of (tp - fp * t / (1 - t)) / n; compare with treating all and with treating none, which
brings 0 (Vickers and Elkin, Medical Decision Making 26 (2006) 565-574).

Risk-coverage curve: records are kept in the order of the model's confidence, the rest goes to a human; the risk is the
error rate among those kept (El-Yaniv and Wiener, JMLR 11 (2010) 1605-1641). AURC is the mean risk over all coverages;
its excess is what it lies above the best possible order of the same errors (Geifman et al., ICLR 2019).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medjax.statistics.bootstrap import Floats, Statistic, sums_by_bin
from medjax.statistics.discrimination import checked


def net_benefit(labels: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> Statistic:
    """The statistic: net benefit of acting on probability >= threshold, [resamples, thresholds]."""
    y, p = checked(labels, probabilities)
    t = _checked_thresholds(thresholds)
    order = np.argsort(t)
    reached = np.searchsorted(t[order], p, side="right")  # so many of the rising thresholds
    found, alarms = (sums_by_bin(each, reached, len(t) + 1) for each in (y, ~y))

    def statistic(weights: Floats) -> Floats:
        # who reaches a threshold reaches all below: sums from the highest on
        tp, fp = (np.cumsum(sums(weights)[:, ::-1], axis=1)[:, -2::-1] for sums in (found, alarms))
        benefit = np.empty_like(tp)
        benefit[:, order] = tp - fp * (t / (1 - t))[order]
        return benefit / weights.sum(1, keepdims=True)

    return statistic


def net_benefit_of_all(labels: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Net benefit of treating everybody, [thresholds]."""
    t = _checked_thresholds(thresholds)
    share = float(np.asarray(labels, dtype=bool).mean())
    return share - (1 - share) * t / (1 - t)


@dataclass(frozen=True)
class RiskCoverage:
    """Records in descending confidence, with their errors; equal confidence shares its mean error.

    order   [records] positions
    errors  [records] in that order, 0 to 1
    """

    order: np.ndarray
    errors: Floats

    @classmethod
    def of(cls, errors: ArrayLike, confidence: ArrayLike) -> "RiskCoverage":
        """errors [records], such as decision wrong 1 or 0; confidence [records], higher is surer."""
        e, c = np.asarray(errors, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
        if e.shape != c.shape or e.ndim != 1 or not len(e):
            raise ValueError(f"errors, confidence: got shapes {e.shape} and {c.shape}, expected one of each a record.")
        order = np.argsort(-c, kind="stable")
        _, group = np.unique(-c[order], return_inverse=True)
        mean = np.bincount(group, weights=e[order]) / np.bincount(group)
        return cls(order, mean[group])

    def area(self, weights: Floats) -> Floats:
        """The statistic AURC: mean over coverages of the risk."""
        w = weights[:, self.order]
        kept = np.cumsum(w, axis=1)
        risk = np.cumsum(w * self.errors, axis=1) / np.where(kept == 0, 1, kept)
        return (w * risk).sum(1) / kept[:, -1]

    def risk_at(self, coverages: ArrayLike) -> Statistic:
        """The statistic: risk among the surest share of records, [resamples, coverages]."""
        wanted = np.asarray(coverages, dtype=np.float64)

        def statistic(weights: Floats) -> Floats:
            w = weights[:, self.order]
            kept, wrong = np.cumsum(w, axis=1), np.cumsum(w * self.errors, axis=1)
            rows = []
            for count, errors in zip(kept, wrong, strict=True):
                place = np.searchsorted(count, np.ceil(wanted * count[-1] - 1e-9).clip(1))
                rows.append(errors[place] / count[place])
            return np.array(rows)

        return statistic

    def excess(self) -> float:
        """AURC minus that of the same errors in the best order: all right ones first."""
        whole = np.ones((1, len(self.errors)))
        best = RiskCoverage(np.arange(len(self.errors)), np.sort(self.errors))
        return float(self.area(whole)[0] - best.area(whole)[0])


def _checked_thresholds(thresholds: ArrayLike) -> Floats:
    t = np.asarray(thresholds, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not (t.min() > 0 and t.max() < 1):
        raise ValueError(f"thresholds: got {t.tolist()}, expected probabilities between 0 and 1.")
    return t
