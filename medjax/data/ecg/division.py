"""Which records train, validate and test: a rule that a checkpoint carries, so that evaluation finds the same division.

Patients are divided, never records. By shares, a patient's place is a hash of its identifier and the seed and of
nothing else, so more data moves nobody. By folds (cross-validation), patients are dealt out in the order of that hash
within each stratum, so folds are balanced and belong to one data set.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from medjax.data.ecg.index import Index
from medjax.data.ecg.splits import folds, patient_keys, share_of, split_of

SETS = ("train", "validation", "test")
CODE = "code:"  # begins the name of a target that is made of the codes in the files
_CODES_SHOWN = 8


@dataclass(frozen=True)
class SplitRule:
    """How records are divided.

    seed              of the hash
    validation, test  shares of patients, when folds is 0
    folds, fold       cross-validation: that fold is the test set, the next one the validation set
    strata            folds: the label whose classes are spread evenly over them; "": none
    """

    seed: int = 0
    validation: float = 0.15
    test: float = 0.15
    folds: int = 0
    fold: int = 0
    strata: str = ""

    def divide(self, index: Index) -> dict[str, np.ndarray]:
        """Places of the records of each of SETS, in rising order.

        index  of a data set (data.ecg.index). Raises ValueError where `strata` names no label of it.
        """
        patients = patient_keys(index)
        if self.folds:
            number = folds(patients, self._strata(index), self.folds, self.seed)
            role = (number - self.fold) % self.folds
            which = np.array(["test", "validation"] + ["train"] * (self.folds - 2))[role]
        else:
            fractions = {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}
            which = np.array([split_of(patient, self.seed, fractions) for patient in patients])
        return {name: np.flatnonzero(which == name) for name in SETS}

    def _strata(self, index: Index) -> np.ndarray:
        """A class for each record: of a label, or the decade of a number; "" where not known."""
        if not self.strata:
            return np.full(len(index["id"]), "")
        values = target_values(index, self.strata)
        if len(np.unique(values[~np.isnan(values)])) > 10:
            values = np.floor(values / 10)
        return np.array(["" if np.isnan(value) else f"{value:g}" for value in values])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SplitRule":
        """The inverse of to_json. Raises ValueError where a key is missing or unknown."""
        known = {item.name for item in fields(cls)}
        if wrong := known ^ set(values):
            raise ValueError(
                f"split: {', '.join(sorted(wrong))} missing or unknown, expected exactly {', '.join(sorted(known))}; "
                "the file was written by another version of medjax."
            )
        return cls(**values)


def target_values(index: Index, name: str) -> np.ndarray:
    """A label by name, float64 [records], NaN where not known.

    name  a label column; `age` in years; `sex` (1: male); or `code:` and a diagnosis code or statement as it stands in
          the files: 1 where a record has it, 0 where a record has others only, not known where it has none

    Raises ValueError naming the labels, or the most frequent codes, there are.
    """
    if name in index["labels"]:
        return index["labels"][name]
    if name == "age":
        return np.asarray(index["age_years"], np.float64)
    if name == "sex":
        sex = index["sex"]
        return np.where(sex == "male", 1.0, np.where(sex == "female", 0.0, np.nan))
    if name.startswith(CODE):
        return _code_values(index["codes"], name.removeprefix(CODE))
    known = ", ".join(["age", "sex", *index["labels"]])
    raise ValueError(
        f"data.targets: got {name}, expected labels of the data: {known}; ingest it with --labels, or name a "
        f"code of the files, such as {CODE}164889003."
    )


def _code_values(codes: np.ndarray, wanted: str) -> np.ndarray:
    values = np.array([float(wanted in own) if own else np.nan for own in codes])
    if not (values == 1).any():
        counts = Counter(code for own in codes for code in own)
        there = ", ".join(f"{code} ({count:,})" for code, count in counts.most_common(_CODES_SHOWN)) or "none at all"
        raise ValueError(
            f"data.targets: got {CODE}{wanted}, which no record has, expected a code of the data such as {there}."
        )
    return values


def fraction_of(index: Index, places: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Of these places those whose patients a hash puts into the fraction; a smaller fraction is part of a larger."""
    if fraction >= 1:
        return places
    patients = patient_keys(index)
    return places[np.array([share_of(f"labels:{patients[place]}", seed) < fraction for place in places], bool)]
