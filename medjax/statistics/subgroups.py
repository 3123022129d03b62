"""Whether a model works for everybody: the same figures in each age band, sex, device or source.

Every group is counted and gets an interval, however small; a group with fewer than `SMALL` records of either class is
marked, since its figures say little. Records whose group is not known are a group of their own, "unknown".
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.statistics import agreement, delong
from medjax.statistics.bootstrap import PatientBootstrap, weighted_mean
from medjax.statistics.discrimination import checked
from medjax.statistics.proportions import share

SMALL = 10
BANDS = (18, 40, 50, 60, 70, 80)  # years, lower ends
UNKNOWN = "unknown"


def age_bands(ages: ArrayLike, bands: Sequence[int] = BANDS) -> NDArray[np.object_]:
    """Name the band of each age: "<18", "18-39", …, "80+", or "unknown" for NaN."""
    values = np.asarray(ages, dtype=np.float64)
    names = [
        f"<{bands[0]}",
        *(f"{low}-{high - 1}" for low, high in pairwise(bands)),
        f"{bands[-1]}+",
    ]
    place = np.searchsorted(np.array(bands), values, side="right")
    return np.array([UNKNOWN if np.isnan(v) else names[i] for v, i in zip(values, place, strict=True)], dtype=object)


def named_groups(values: Sequence[Any] | ArrayLike) -> NDArray[np.object_]:
    """Texts of a column, with None, NaN and "" as "unknown"."""
    column = np.asarray(values, dtype=object)
    return np.array([UNKNOWN if v is None or v != v or v == "" else str(v) for v in column], dtype=object)


def of_detector(
    labels: ArrayLike,
    scores: ArrayLike,
    called: ArrayLike,
    patients: ArrayLike,
    groups: Mapping[str, ArrayLike],
    *,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """One entry a group: by, value, records, patients, positive, small; Estimates auroc, sensitivity, specificity,
    prevalence.

    labels, scores, called  [records]
    patients                [records] numbers as `bootstrap.patient_numbers` gives them
    groups                  such as "sex" -> [records] names
    """
    y, s = checked(labels, scores)
    d, owners = np.asarray(called, dtype=bool), np.asarray(patients)
    rows = []
    for by, value, chosen in _each(groups, len(y)):
        inside, who = y[chosen], owners[chosen]
        hits = d[chosen]
        rows.append(
            {
                "by": by,
                "value": value,
                "records": len(inside),
                "patients": len(np.unique(who)),
                "positive": int(inside.sum()),
                "small": int(min(inside.sum(), (~inside).sum())) < SMALL,
                "auroc": delong.interval(inside, s[chosen], who, level=level),
                "sensitivity": share(hits, inside, who, level=level, nothing="no record is positive"),
                "specificity": share(~hits, ~inside, who, level=level, nothing="no record is negative"),
                "prevalence": share(inside, None, who, level=level),
            }
        )
    return rows


def of_regression(
    true: ArrayLike,
    predicted: ArrayLike,
    patients: ArrayLike,
    groups: Mapping[str, ArrayLike],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """One entry a group: by, value, records, patients, small; Estimates mae and bias, by bootstrap within the group."""
    x, y = agreement.checked(true, predicted)
    owners = np.asarray(patients)
    rows = []
    for by, value, chosen in _each(groups, len(x)):
        d = (y - x)[chosen]
        bootstrap = PatientBootstrap(owners[chosen], resamples=resamples, level=level, seed=seed)
        found = bootstrap.estimates({"mae": weighted_mean(np.abs(d)), "bias": weighted_mean(d)})
        small = len(d) < agreement.SMALL
        rows.append(
            {
                "by": by,
                "value": value,
                "records": len(d),
                "patients": bootstrap.patients,
                "small": small,
                **found,
            }
        )
    return rows


def _each(groups: Mapping[str, ArrayLike], records: int) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield column, group and the booleans of its records; groups in order of name, "unknown" last."""
    for by, column in groups.items():
        names = np.asarray(column, dtype=object)
        if len(names) != records:
            raise ValueError(f"groups: {by}: got {len(names)} entries, expected {records}, one a record.")
        for value in sorted(set(names), key=lambda name: (name == UNKNOWN, not name.startswith("<"), name)):
            yield by, value, names == value
