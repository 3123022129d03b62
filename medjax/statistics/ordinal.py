"""Agreement of ordered classes, such as grades of severity: weighted kappa, error in classes, confusion table."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics.bootstrap import Estimate, Floats, PatientBootstrap, Statistic, weighted_mean


def confusion(true: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [true class, predicted class]."""
    x, y = _checked(true, predicted, classes)
    return np.bincount(x * classes + y, minlength=classes * classes).reshape(classes, classes)


def weighted_kappa(true: ArrayLike, predicted: ArrayLike, classes: int, *, power: int) -> Statistic:
    """The statistic: Cohen's kappa with weights |i - j| ** power; NaN where true and predicted are one same class.

    power  1 linear, 2 quadratic
    Source: Cohen, Psychological Bulletin 70 (1968) 213-220.
    """
    x, y = _checked(true, predicted, classes)
    cost = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(np.float64) ** power
    rows, columns, paid = np.eye(classes)[x], np.eye(classes)[y], cost[x, y]

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(1)
        by_chance = np.einsum("ri,ij,rj->r", weights @ rows, cost, weights @ columns) / total
        return 1 - weights @ paid / np.where(by_chance == 0, np.nan, by_chance)

    return statistic


def errors(true: ArrayLike, predicted: ArrayLike, classes: int, bootstrap: PatientBootstrap) -> dict[str, Estimate]:
    """Estimates: mae (classes), weighted_kappa (quadratic), linear_kappa, accuracy."""
    x, y = _checked(true, predicted, classes)
    return bootstrap.estimates(
        {
            "mae": weighted_mean(np.abs(x - y)),
            "weighted_kappa": weighted_kappa(x, y, classes, power=2),
            "linear_kappa": weighted_kappa(x, y, classes, power=1),
            "accuracy": weighted_mean(x == y),
        }
    )


def _checked(true: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    x, y = np.asarray(true), np.asarray(predicted)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"true, predicted: got shapes {x.shape} and {y.shape}, expected one of each a record.")
    both = np.concatenate([x, y])
    if not np.isin(both, np.arange(classes)).all():
        raise ValueError(f"true, predicted: got {both.min()} to {both.max()}, expected classes 0 to {classes - 1}.")
    return x.astype(np.int64), y.astype(np.int64)
