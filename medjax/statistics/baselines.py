"""What a classifier without any signal would score: logistic regression on the source, on age and sex.

When the hospital or the device alone tells the label, a model may have learned to tell hospitals apart. These
baselines make that visible: they are cross-validated by patient on the evaluated records themselves, so they stand for
what can be known from these columns here. An AUROC of the model that is hardly above theirs is no evidence of medicine
learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import Floats
from medjax.statistics.discrimination import checked, one_class

FOLDS = 5


@dataclass(frozen=True)
class Baseline:
    """Out-of-fold predictions from a few columns.

    scores  [records]: log odds for labels, values for numbers; None where it cannot be made, then reason says why
    """

    name: str
    features: tuple[str, ...]
    scores: Floats | None
    reason: str = ""


def of_labels(
    name: str, columns: Mapping[str, ArrayLike], labels: ArrayLike, patients: ArrayLike, *, seed: int = 0
) -> Baseline:
    """Predict labels by logistic regression (scikit-learn, L2 with C = 1), folds stratified and by patient.

    columns   name -> [records]; numbers are standardised, with NaN at the mean and marked by a column of its own; texts
              become one column a value
    labels    [records] 0 or 1
    patients  [records] numbers
    """
    y, _ = checked(labels, np.zeros(len(np.asarray(labels))))
    features = tuple(columns)
    if reason := one_class(y):
        return Baseline(name, features, None, reason)
    table = _table(columns)
    owners = np.asarray(patients)
    fewest = min(len(np.unique(owners[y])), len(np.unique(owners[~y])))
    folds = min(FOLDS, fewest)
    if not table.shape[1]:
        return Baseline(name, features, None, f"{', '.join(features)}: the same for all records")
    if folds < 2:
        return Baseline(name, features, None, "one class has a single patient: no cross-validation")
    from sklearn.linear_model import LogisticRegression

    scores = np.zeros(len(y))
    for test in _folds(owners, y, folds, seed):
        train = ~test
        if one_class(y[train]):
            return Baseline(name, features, None, "a fold has one class only: no cross-validation")
        scores[test] = LogisticRegression(max_iter=1000).fit(table[train], y[train]).decision_function(table[test])
    return Baseline(name, features, scores)


def of_numbers(
    name: str, columns: Mapping[str, ArrayLike], values: ArrayLike, patients: ArrayLike, *, seed: int = 0
) -> Baseline:
    """Predict numbers by ridge regression (scikit-learn, alpha = 1), folds by patient; the rest as in `of_labels`."""
    y = np.asarray(values, dtype=np.float64)
    features, table, owners = tuple(columns), _table(columns), np.asarray(patients)
    folds = min(FOLDS, len(np.unique(owners)))
    if not table.shape[1]:
        return Baseline(name, features, None, f"{', '.join(features)}: the same for all records")
    if folds < 2:
        return Baseline(name, features, None, "a single patient: no cross-validation")
    from sklearn.linear_model import Ridge

    scores = np.zeros(len(y))
    for test in _folds(owners, y > np.median(y), folds, seed):
        scores[test] = Ridge().fit(table[~test], y[~test]).predict(table[test])
    return Baseline(name, features, scores)


def _folds(owners: NDArray[np.int64], marked: NDArray[np.bool_], folds: int, seed: int) -> list[NDArray[np.bool_]]:
    """The records of each fold: patients in random order, dealt out evenly, those with a marked record first."""
    patients, owner = np.unique(owners, return_inverse=True)
    has = np.bincount(owner, weights=marked) > 0
    shuffled = np.random.default_rng(seed).permutation(len(patients))
    dealt = np.zeros(len(patients), np.int64)
    dealt[shuffled[np.argsort(~has[shuffled], kind="stable")]] = np.arange(len(patients)) % folds
    return [dealt[owner] == fold for fold in range(folds)]


def _table(columns: Mapping[str, ArrayLike]) -> Floats:
    """[records, features]; columns that say the same of all records are left out."""
    parts: list[Floats] = []
    records = 0
    for column in columns.values():
        values = np.asarray(column)
        records = len(values)
        parts += _of_numbers(values) if values.dtype.kind in "fiub" else _of_texts(values)
    kept = [part for part in parts if len(part) and part.min() != part.max()]
    return np.stack(kept, axis=1) if kept else np.zeros((records, 0))


def _of_numbers(values: NDArray) -> Sequence[Floats]:
    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    if not known.any():
        return []
    spread = numbers[known].std() or 1.0
    return [np.where(known, (numbers - numbers[known].mean()) / spread, 0.0), (~known).astype(np.float64)]


def _of_texts(values: NDArray) -> Sequence[Floats]:
    names = np.array(["" if v is None or v != v else str(v) for v in values], dtype=object)
    return [(names == name).astype(np.float64) for name in sorted(set(names))]
