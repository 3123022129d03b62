"""Sets of labels that hold the true one with a stated confidence: split conformal prediction for a yes-or-no question.

The nonconformity of a label is 1 minus the probability the model gives it. A label belongs to the set when its
nonconformity is at most the k-th smallest of n validation records, k = ceil((n + 1) * confidence); with fewer than k
records every label belongs. A record of a new patient like those of the validation set is then covered with at least
this confidence, whatever the model is worth, as long as the n records are of n patients and nothing else was chosen on
them. So one record stands for each patient (of each label, where the labels are taken apart), or a patient with ten
would count ten times. The second is not met: training chooses the calibration and the exported checkpoint on the same
validation patients, which makes the sets a little too small, so the confidence holds approximately.

Class-conditional sets take the n of each label apart, so the promise holds among the positives too, where it is most
wanted (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Vovk, ACML 2012). A checkpoint stores
a limit for each label and confidence, and applying it needs nothing else; the sets equal those of crepes without
smoothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import patient_numbers
from medjax.statistics.discrimination import checked
from medjax.statistics.stored import checked_fields

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ConformalSets:
    """Limits of nonconformity.

    confidences        for which limits are stored
    limits             of each confidence: (of the negative label, of the positive label); inf where every label belongs
    class_conditional  whether the two were made apart
    records            validation records behind the limits: (of the negative label, of the positive label)
    origin             the data they come from
    """

    confidences: tuple[float, ...]
    limits: tuple[tuple[float, float], ...]
    class_conditional: bool
    records: tuple[int, int]
    origin: str = ""

    def apply(self, probabilities: ArrayLike, confidence: float) -> NDArray[np.bool_]:
        """Whether the negative and the positive label belong to the set: [records, 2].

        probabilities  [records] of the positive label, calibrated as on the validation records

        Raises ValueError for a confidence whose limits are not stored.
        """
        places = [i for i, known in enumerate(self.confidences) if math.isclose(known, confidence)]
        if not places:
            known = ", ".join(f"{c:g}" for c in self.confidences)
            raise ValueError(f"confidence: got {confidence}, expected one that the checkpoint holds: {known}.")
        return _nonconformity(np.asarray(probabilities, dtype=np.float64)) <= np.array(self.limits[places[0]])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a limit of inf is null."""
        return {
            "confidences": list(self.confidences),
            "limits": [[None if math.isinf(limit) else limit for limit in pair] for pair in self.limits],
            "class_conditional": self.class_conditional,
            "records": list(self.records),
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ConformalSets":
        """The inverse of to_json. Raises ValueError where a field is missing or unknown."""
        value = checked_fields(cls, value)
        limits = tuple((_limit(negative), _limit(positive)) for negative, positive in value["limits"])
        negatives, positives = value["records"]
        return cls(
            tuple(value["confidences"]), limits, value["class_conditional"], (negatives, positives), value["origin"]
        )


def fit(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str | None] | ArrayLike | None = None,
    *,
    class_conditional: bool = True,
    confidences: Sequence[float] = CONFIDENCES,
    seed: int = 0,
    origin: str = "validation",
) -> ConformalSets:
    """Take the limits from validation records.

    labels, probabilities  [records]; those on which nothing else was chosen would be best, see the module
    patients               [records] as in `bootstrap.patient_numbers`: one record of each is taken, drawn by seed

    Raises ValueError for a confidence outside (0, 1).
    """
    if wrong := [c for c in confidences if not 0 < c < 1]:
        raise ValueError(f"confidences: got {wrong[0]}, expected shares between 0 and 1 such as 0.9.")
    y, p = checked(labels, probabilities)
    scores = _nonconformity(p)[np.arange(len(y)), y.astype(np.int64)]
    owners = patient_numbers(patients, len(y))
    every = (~y, y) if class_conditional else (np.ones(len(y), bool),) * 2
    pools = tuple(scores[_one_of_each(owners, chosen, seed)] for chosen in every)
    limits = tuple((_quantile(pools[0], c), _quantile(pools[1], c)) for c in confidences)
    count = len(np.unique(owners))
    origin = f"{origin}, {len(y):,} records" + (f", one of each of {count:,} patients" if count < len(y) else "")
    return ConformalSets(tuple(confidences), limits, class_conditional, (len(pools[0]), len(pools[1])), origin)


def _one_of_each(owners: NDArray[np.int64], chosen: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """The places of one chosen record of each patient that has any."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(chosen))
    return shuffled[np.unique(owners[shuffled], return_index=True)[1]]


def _nonconformity(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([probabilities, 1 - probabilities], axis=-1)


def _quantile(scores: NDArray[np.float64], confidence: float) -> float:
    # 10 * 0.9 is 9.000000000000002 to a computer
    place = math.ceil((len(scores) + 1) * confidence - 1e-9)
    return math.inf if place > len(scores) else float(np.sort(scores)[place - 1])


def _limit(value: float | None) -> float:
    return math.inf if value is None else float(value)
