"""Where a score becomes a decision, and what the decisions are worth: threshold choice and the confusion table.

A record is called positive when its score is at least the threshold. A threshold is chosen on validation data by one of

  youden       the largest sensitivity + specificity - 1 (Youden, Cancer 3 (1950) 32-35)
  sensitivity  the highest threshold whose sensitivity is at least `at`
  specificity  the lowest threshold whose specificity is at least `at`
  given        somebody stated it

and lies halfway between two scores that occurred, so that a rounding error of a score does not turn a decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import Estimate, Floats, PatientBootstrap, Statistic
from medjax.statistics.discrimination import Ranking, checked, one_class
from medjax.statistics.proportions import share
from medjax.statistics.stored import checked_fields

RULES = ("youden", "sensitivity", "specificity")


@dataclass(frozen=True)
class Threshold:
    """A threshold with the story of its choice.

    value                     scores from here on are positive
    rule, at                  as in the module; at is the fixed sensitivity or specificity, None for the others
    origin                    the data it was chosen on, such as "validation"
    sensitivity, specificity  there, None for a given one
    reason                    why another rule than the wanted one was taken, or ""
    """

    value: float
    rule: str
    at: float | None = None
    origin: str = ""
    sensitivity: float | None = None
    specificity: float | None = None
    reason: str = ""

    def decide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        return np.asarray(scores, dtype=np.float64) >= self.value

    @property
    def story(self) -> str:
        """Such as "validation: specificity at least 0.9"."""
        how = {"youden": "Youden's index", "given": "given"}.get(self.rule) or f"{self.rule} at least {self.at:g}"
        return f"{self.origin}: {how}" if self.origin else how

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Threshold":
        """The inverse of to_json. Raises ValueError where a field is missing or unknown."""
        return cls(**checked_fields(cls, value))


def choose(
    labels: ArrayLike, scores: ArrayLike, rule: str = "youden", at: float | None = None, *, origin: str = "validation"
) -> Threshold:
    """Choose a threshold on these records.

    labels, scores  [records]; scores on the scale on which the threshold will be used
    at              of the rules sensitivity and specificity: a share in (0, 1]

    With one class only there is nothing to choose by: 0.5 comes back, with the reason.
    Raises ValueError for an unknown rule or a wrong `at`.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}.")
    wanted = 0.0 if rule == "youden" or at is None else at
    if rule != "youden" and not 0 < wanted <= 1:
        raise ValueError(f"at: got {at}, expected the {rule} to reach, a share in (0, 1] such as 0.9.")
    y, s = checked(labels, scores)
    if reason := one_class(y):
        return Threshold(0.5, "given", origin=origin, reason=f"{reason}: no threshold can be chosen")
    ranking = Ranking(y, s)
    tp, fp = (counts[0] for counts in ranking.counts())
    sensitivity, specificity = np.r_[0.0, tp / tp[-1]], np.r_[1.0, 1 - fp / fp[-1]]
    if rule == "youden":
        place = int(np.argmax(sensitivity + specificity))
    elif rule == "sensitivity":
        place = int(np.argmax(sensitivity >= wanted - 1e-12))
    else:
        place = int(np.flatnonzero(specificity >= wanted - 1e-12)[-1])
    return Threshold(
        _between(ranking.thresholds, place),
        rule,
        wanted or None,
        origin,
        float(sensitivity[place]),
        float(specificity[place]),
    )


def operating_point(
    labels: ArrayLike, called: ArrayLike, bootstrap: PatientBootstrap, patients: Sequence[str | None] | ArrayLike
) -> dict[str, Any]:
    """The confusion table of decisions and what follows from it.

    labels, called  [records] 0 or 1
    patients        [records]
    returns         "confusion" {tp, fp, fn, tn} and Estimates: sensitivity, specificity, ppv, npv, accuracy, flagged
                    (share called positive) by `proportions.share`; f1, balanced_accuracy by bootstrap
    """
    y, decided = checked(labels, np.asarray(called, dtype=np.float64))
    d = decided > 0
    level = bootstrap.level

    def of(hits: NDArray[np.bool_], among: NDArray[np.bool_] | None, nothing: str) -> Estimate:
        return share(hits, among, patients, level=level, nothing=nothing)

    more = bootstrap.estimates({"f1": f1(y, d), "balanced_accuracy": balanced_accuracy(y, d)})
    return {
        "confusion": {
            "tp": int((y & d).sum()),
            "fp": int((~y & d).sum()),
            "fn": int((y & ~d).sum()),
            "tn": int((~y & ~d).sum()),
        },
        "sensitivity": of(d, y, "no record is positive"),
        "specificity": of(~d, ~y, "no record is negative"),
        "ppv": of(y, d, "no record is called positive"),
        "npv": of(~y, ~d, "no record is called negative"),
        "accuracy": of(y == d, None, "no record"),
        "flagged": of(d, None, "no record"),
        **more,
    }


def f1(labels: NDArray[np.bool_], called: NDArray[np.bool_]) -> Statistic:
    """The statistic 2 tp / (2 tp + fp + fn); NaN where nothing is positive and nothing called so."""
    twice, sides = 2.0 * (labels & called), labels.astype(np.float64) + called

    def statistic(weights: Floats) -> Floats:
        below = weights @ sides
        return weights @ twice / np.where(below == 0, np.nan, below)

    return statistic


def balanced_accuracy(labels: NDArray[np.bool_], called: NDArray[np.bool_]) -> Statistic:
    """The statistic (sensitivity + specificity) / 2; NaN where a class is absent."""
    columns = np.stack([labels & called, labels, ~labels & ~called, ~labels], axis=1).astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        sums = weights @ columns
        sums[:, 1::2][sums[:, 1::2] == 0] = np.nan
        return (sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3]) / 2

    return statistic


def _between(thresholds: Floats, place: int) -> float:
    """A value that the first `place` of the descending thresholds reach, and no other."""
    if place == 0:
        return float(np.nextafter(thresholds[0], np.inf))
    if place == len(thresholds):
        return float(thresholds[-1])
    middle = float((thresholds[place - 1] + thresholds[place]) / 2)
    # between neighbours of floating point there is nothing
    return middle if middle > thresholds[place] else float(thresholds[place - 1])
