"""Intervals by resampling patients: the records of a patient are alike, so they come and go together.

A resample draws as many patients as there are, with replacement (cluster bootstrap; Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8). It is written as a weight for each record, the number of times that
its patient was drawn, so a statistic that takes weights is computed for many resamples at once:

  patients  a a b c      draws  b b a      weights  1 1 2 0      statistic(weights [resamples, records]) -> [resamples]

The estimate itself is the statistic of weights 1. Two models are compared by a statistic that is their difference: both
see the same resample. Resamples in which a statistic is undefined (NaN: one class only) are left out and counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2_000
METHOD = "bootstrap by patient"
_CHUNK = 2_000_000  # weights held at once: 16 MB, so that what is made from them stays in reach of the caches

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval, how the interval was made, and what is to be said about either.

    value, low, high  None where undefined; then `reason` says why. A reason beside numbers is a caution.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def undefined(reason: str) -> Estimate:
    return Estimate(None, reason=reason)


def patient_numbers(patients: Sequence[str | None] | ArrayLike | None, records: int) -> NDArray[np.int64]:
    """Number the patients 0, 1, …, one number a record.

    patients  [records] names or numbers; None, NaN or "" is a patient of its own; None for all: every record is one

    Raises ValueError unless there is one entry a record.
    """
    if patients is None:
        return np.arange(records)
    names = list(np.asarray(patients, dtype=object))
    if len(names) != records:
        raise ValueError(f"patients: got {len(names)} entries, expected {records}, one a record.")
    seen: dict[Any, int] = {}
    unknown = (None, "")
    return np.array(
        [
            seen.setdefault((row,) if name in unknown or name != name else str(name), len(seen))
            for row, name in enumerate(names)
        ],
        dtype=np.int64,
    )


class PatientBootstrap:
    """Resamples of a set of records by patient; the same seed gives the same resamples.

    patients   [records] as in `patient_numbers`
    resamples  how many
    level      of the intervals
    """

    def __init__(
        self,
        patients: Sequence[str | None] | ArrayLike,
        *,
        resamples: int = RESAMPLES,
        level: float = 0.95,
        seed: int = 0,
    ):
        self.numbers = patient_numbers(patients, len(np.asarray(patients, dtype=object)))
        if not len(self.numbers):
            raise ValueError("patients: got no record, expected at least one.")
        if resamples < 1:
            raise ValueError(f"resamples: got {resamples}, expected at least 1.")
        if not 0 < level < 1:
            raise ValueError(f"level: got {level}, expected a share between 0 and 1 such as 0.95.")
        self.records, self.patients = len(self.numbers), int(self.numbers.max()) + 1
        self.resamples, self.level, self.seed = resamples, level, seed

    def weights(self) -> Iterator[Floats]:
        """Yield [some resamples, records] float64 until all resamples were given."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, _CHUNK // self.records)
        for start in range(0, self.resamples, rows):
            size = min(rows, self.resamples - start)
            drawn = generator.integers(0, self.patients, size=(size, self.patients))
            drawn += self.patients * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * self.patients).reshape(size, self.patients)
            whole = counts.astype(np.float64)
            # most often a patient is a record, and no copy is needed
            yield whole if self.patients == self.records else whole[:, self.numbers]

    def draws(self, statistic: Statistic) -> Floats:
        """The statistic of every resample: [resamples] or [resamples, values]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.concatenate([statistic(weights) for weights in self.weights()])

    def estimates(self, statistics: Mapping[str, Statistic]) -> dict[str, Estimate]:
        """Every statistic with its percentile interval; all see the same resamples, which are made once."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {name: float(statistic(np.ones((1, self.records)))[0]) for name, statistic in statistics.items()}
            parts: dict[str, list[Floats]] = {name: [] for name in statistics}
            for weights in self.weights():
                for name, statistic in statistics.items():
                    parts[name].append(statistic(weights))
        return {name: self._estimate(values[name], np.concatenate(parts[name])) for name in statistics}

    def estimate(self, statistic: Statistic) -> Estimate:
        return self.estimates({"": statistic})[""]

    def band(self, statistic: Statistic) -> tuple[Floats, Floats, Floats]:
        """Of a statistic with many values: value, low and high, each [values]; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(np.ones((1, self.records)))[0]
        drawn = self.draws(statistic)
        low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
        defined = np.isfinite(drawn).any(0)
        if self.patients > 1 and defined.any():
            low[defined], high[defined] = np.nanquantile(drawn[:, defined], self._ends, axis=0)
        return value, low, high

    @property
    def _ends(self) -> list[float]:
        return [(1 - self.level) / 2, (1 + self.level) / 2]

    def _estimate(self, value: float, drawn: Floats) -> Estimate:
        if not np.isfinite(value):
            return undefined("not defined on these records")
        if self.patients == 1:
            return Estimate(value, reason="one patient: no interval can be given")
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Estimate(value, reason="not defined on any resample: no interval can be given")
        low, high = np.quantile(drawn, self._ends)
        left = self.resamples - len(drawn)
        reason = f"{left:,} of {self.resamples:,} resamples, where it is not defined, were left out" if left else ""
        return Estimate(value, float(low), float(high), METHOD, reason)


def stratified_weights(sizes: Sequence[int], resamples: int, seed: int = 0) -> Iterator[list[Floats]]:
    """Resamples of several samples at once, each of which keeps its size: [some resamples, size] of every sample.

    sizes  records of each sample. Raises ValueError for an empty one, and without resamples.
    """
    if min(sizes, default=0) < 1 or resamples < 1:
        raise ValueError(f"sizes, resamples: got {list(sizes)} and {resamples}, expected 1 or more of each.")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // sum(sizes))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        yield [generator.multinomial(size, np.full(size, 1 / size), count).astype(np.float64) for size in sizes]


def weighted_mean(values: ArrayLike) -> Statistic:
    """The statistic that is a mean over records, such as accuracy, Brier score or mean absolute error."""
    column = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ column / weights.sum(1)


def weighted_ratio(numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
    """The statistic that is a ratio of sums over records, such as sensitivity; NaN where the lower sum is 0."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return lambda weights: weights @ top / _or_nan(weights @ bottom)


def sums_by_bin(values: ArrayLike, place: ArrayLike, count: int) -> Statistic:
    """The statistic: sums of values over the records of each bin, [resamples, count], in the memory of the records.

    values, place  [records]; place: the bin, 0 to count - 1
    """
    from scipy.sparse import csr_array

    column, bins = np.asarray(values, dtype=np.float64), np.asarray(place)
    table = csr_array((column, (bins, np.arange(len(column)))), shape=(count, len(column)))
    return lambda weights: np.asarray(table @ weights.T).T


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The statistic that is first minus second on the same resample."""
    return lambda weights: first(weights) - second(weights)


def _or_nan(sums: Floats) -> Floats:
    return np.where(sums == 0, np.nan, sums)
