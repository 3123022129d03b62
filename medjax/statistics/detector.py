"""What turns the logit of a yes-or-no target into an answer: calibration, threshold and conformal sets in one record.

Everything is chosen on validation data, once, at the end of training; the checkpoint stores it as JSON, and prediction
and evaluation apply it. The threshold and the sets are on the scale of the calibrated probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics import calibration, conformal, thresholds
from medjax.statistics.bootstrap import Floats
from medjax.statistics.calibration import Calibration
from medjax.statistics.conformal import ConformalSets
from medjax.statistics.discrimination import checked, one_class
from medjax.statistics.stored import checked_fields
from medjax.statistics.thresholds import Threshold


@dataclass(frozen=True)
class DetectorRule:
    """Logit -> probability with interval, decision, possible labels; conformal is None where none can be made."""

    calibration: Calibration
    threshold: Threshold
    conformal: ConformalSets | None

    def probability(self, logits: ArrayLike) -> Floats:
        return self.calibration.apply(logits)

    def interval(self, logits: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats] | None:
        """Low and high of the calibrated probability; None where no calibration was fitted."""
        return self.calibration.interval(logits, level=level)

    def decide(self, logits: ArrayLike) -> NDArray[np.bool_]:
        return self.threshold.decide(self.probability(logits))

    def sets(self, logits: ArrayLike, confidence: float = 0.9) -> NDArray[np.bool_] | None:
        """Whether negative and positive are possible at this confidence: [records, 2]; None without conformal sets."""
        return self.conformal.apply(self.probability(logits), confidence) if self.conformal else None

    def to_json(self) -> dict[str, Any]:
        return {
            "calibration": self.calibration.to_json(),
            "threshold": self.threshold.to_json(),
            "conformal": self.conformal.to_json() if self.conformal else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DetectorRule":
        """The inverse of to_json. Raises ValueError where a field is missing or unknown."""
        known = checked_fields(cls, value)
        sets = known["conformal"]
        return cls(
            Calibration.from_json(known["calibration"]),
            Threshold.from_json(known["threshold"]),
            None if sets is None else ConformalSets.from_json(sets),
        )


def fit_detector(
    labels: ArrayLike,
    logits: ArrayLike,
    patients: Sequence[str | None] | ArrayLike,
    *,
    method: str = "platt",
    threshold: str = "youden",
    at: float | None = None,
    draws: int = calibration.DRAWS,
    class_conditional: bool = True,
    seed: int = 0,
    origin: str = "validation",
) -> DetectorRule:
    """Choose everything on these records.

    labels     [records] 0 or 1; leave records of unknown label out
    logits     [records] raw outputs, before any sigmoid
    patients   [records]
    method     calibration: platt, temperature or none
    threshold  youden, sensitivity or specificity; at: the sensitivity or specificity to reach
    draws      resamples of patients behind the interval of a probability
    seed       of these, and of the record that stands for each patient in conformal sets

    Without both classes nothing can be chosen: sigmoid, threshold 0.5 and no sets come back, with the reason.
    Raises ValueError for unknown rules and for labels other than 0 and 1.
    """
    y, z = checked(labels, logits)
    fitted = calibration.fit(y, z, patients, method, draws=draws, seed=seed, origin=origin)
    p = fitted.apply(z)
    return DetectorRule(
        fitted,
        thresholds.choose(y, p, threshold, at, origin=origin),
        None
        if one_class(y)
        else conformal.fit(y, p, patients, class_conditional=class_conditional, seed=seed, origin=origin),
    )
