"""Batches of ECG windows, prepared but neither augmented nor normalised: both happen on the device, inside the step.

A row of training is one record, cut at a place that is drawn anew each epoch; a row of a held-out batch is one of the
windows of a record (signal.windows), the same at every evaluation. Which record, which cut and which seed a row gets
follows from (seed, number of the row in the line of all epochs) alone, so it is the same on any mesh, for any number of
processes and with any accumulation.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from medjax.data import batches
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import WHOLE_S, Preprocessing, prepared_samples, prepared_windows, window_starts
from medjax.data.hashing import hashes

_ORDER, _START, _SEED = range(3)  # what is drawn: order of an epoch, start of a cut, seed of a row


class EcgBatch(NamedTuple):
    """Rows of windows: NumPy arrays, jax arrays, or their shapes.

    signal   [b, leads, samples] float32, mV, filtered and resampled, 0 where not valid
    valid    [b, leads, samples] bool, false in missing leads, gaps and padding
    targets  [b, targets] float32, 0 where not known; one column of zeros where there are no targets
    weights  [b, targets] float32, 1 where the target is known; where there are no targets, 1 in rows with a record
    seeds    [b] uint32, from which all that is random about a row is drawn
    """

    signal: Any
    valid: Any
    targets: Any
    weights: Any
    seeds: Any


class Records(Protocol):
    """What batches need of a data set (data.ecg.dataset.EcgDataset): records by place, and an index of them."""

    @property
    def index(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int] | np.ndarray) -> list[EcgRecord]: ...


class EcgBatches(batches.Batches):
    """Batches of training: each chosen record once an epoch, in an order of the epoch's own.

    dataset        where records are read from
    chosen         [n] places in it
    preprocessing  of the records
    rows           rows of a batch, over all processes
    seed           of order, cuts and the rows' seeds
    targets        [records of the dataset, targets], NaN where not known; None: no targets

    A record that is longer than a window is cut at any place, one that is shorter is padded at its end. Raises
    ValueError where nothing is chosen, a place does not exist, or targets has another number of rows.
    """

    fill = 1.0  # every row holds a record

    def __init__(
        self,
        dataset: Records,
        chosen: np.ndarray | Sequence[int],
        preprocessing: Preprocessing,
        *,
        rows: int,
        seed: int,
        targets: np.ndarray | None = None,
    ) -> None:
        super().__init__(rows)
        self._windows = _Windows(dataset, chosen, preprocessing, targets)
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._order)
        self.rows_per_epoch = len(self._windows.chosen)

    def _order(self, epoch: int) -> np.ndarray:
        """Places of the chosen records in an epoch's order."""
        keys = hashes(np.arange(self.rows_per_epoch), self._seed, epoch, _ORDER)
        return self._windows.chosen[np.argsort(keys, kind="stable")]

    def _place(self, number: int) -> int:
        epoch, place = divmod(number, self.rows_per_epoch)
        return int(self._epoch(epoch)[place])

    def _make(self, numbers: Sequence[int]) -> EcgBatch:
        places = [self._place(number) for number in numbers]
        drawn = (hashes(np.array(numbers), self._seed, _START) >> np.uint64(11)) / 2.0**53  # 0 to 1, without 1
        free = [self._windows.samples(place) - self._windows.width for place in places]
        starts = [int(share * (1 + max(more, 0))) for share, more in zip(drawn, free, strict=True)]
        return self._windows.batch(places, starts, _row_seeds(numbers, self._seed))

    def _ids(self, number: int) -> list[str]:
        return [str(self._windows.dataset.index["id"][self._place(number)])]


class EcgHeldOut(batches.HeldOut):
    """The windows of the chosen records, record after record, the same every time; weight 0 in the rows that fill up.

    The arguments are those of EcgBatches. places [filled] tells the record of each row, as a place in the dataset, so
    that what is found in the windows of a record can be averaged.
    """

    def __init__(
        self,
        dataset: Records,
        chosen: np.ndarray | Sequence[int],
        preprocessing: Preprocessing,
        *,
        rows: int,
        seed: int = 0,
        targets: np.ndarray | None = None,
    ) -> None:
        super().__init__(rows)
        self._windows = _Windows(dataset, chosen, preprocessing, targets)
        self._seed = seed
        starts = [window_starts(self._windows.samples(i), preprocessing.samples) for i in self._windows.chosen]
        self.places = np.repeat(self._windows.chosen, [len(each) for each in starts])
        self._starts = [start for each in starts for start in each]
        self.filled = len(self.places)

    def _make(self, numbers: Sequence[int]) -> EcgBatch:
        there = [number for number in numbers if number < self.filled]
        cuts = [int(self.places[number]) for number in there], [self._starts[number] for number in there]
        batch = self._windows.batch(*cuts, _row_seeds(numbers, self._seed)[: len(there)])
        empty = len(numbers) - len(there)
        return EcgBatch(*(np.concatenate([part, np.zeros((empty, *part.shape[1:]), part.dtype)]) for part in batch))

    def _ids(self, number: int) -> list[str]:
        return [str(self._windows.dataset.index["id"][self.places[number]])] if number < self.filled else []


class _Windows:
    """Records read, prepared and cut."""

    def __init__(
        self,
        dataset: Records,
        chosen: np.ndarray | Sequence[int],
        preprocessing: Preprocessing,
        targets: np.ndarray | None,
    ) -> None:
        self.dataset = dataset
        self.chosen = np.asarray(chosen, np.int64)
        self.width = preprocessing.samples
        self._preprocessing = preprocessing
        if not self.chosen.size:
            raise ValueError(f"records: got none of {len(dataset)}, expected at least 1; choose others or add some.")
        if self.chosen.min() < 0 or self.chosen.max() >= len(dataset):
            raise ValueError(
                f"records: got places {self.chosen.min()} to {self.chosen.max()}, expected 0 to {len(dataset) - 1}."
            )
        known = np.zeros((len(dataset), 1)) if targets is None else np.asarray(targets, np.float64)
        if known.ndim != 2 or len(known) != len(dataset):
            raise ValueError(
                f"targets: got shape {known.shape}, expected ({len(dataset)}, targets), a row for each record of the "
                "data set and not of the chosen ones only."
            )
        self._weights = np.isfinite(known).astype(np.float32)
        self._targets = np.where(self._weights > 0, known, 0.0).astype(np.float32)

    def samples(self, place: int) -> int:
        """Samples of a record when it is prepared."""
        index = self.dataset.index
        return prepared_samples(
            int(index["samples"][place]), float(index["sampling_rate_hz"][place]), self._preprocessing
        )

    def batch(self, places: Sequence[int], starts: Sequence[int], seeds: np.ndarray) -> EcgBatch:
        shape = (len(places), len(self._preprocessing.leads), self.width)
        signal, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
        rows: dict[int, list[int]] = {}
        for row, place in enumerate(places):
            rows.setdefault(place, []).append(row)
        for place, record in self._read(list(rows)):
            at = rows[place]
            signal[at], valid[at] = prepared_windows(record, self._preprocessing, [starts[row] for row in at])
        return EcgBatch(signal, valid, self._targets[list(places)], self._weights[list(places)], seeds)

    def _read(self, places: Sequence[int]) -> Iterator[tuple[int, EcgRecord]]:
        """Records with their places: short ones read together, long ones one after the other, or memory runs out."""
        index = self.dataset.index
        is_long = [index["samples"][place] > WHOLE_S * index["sampling_rate_hz"][place] for place in places]
        together = [place for place, alone in zip(places, is_long, strict=True) if not alone]
        yield from zip(together, self.dataset.read(together), strict=True)
        for place, alone in zip(places, is_long, strict=True):
            if alone:
                yield place, self.dataset.read([place])[0]


def _row_seeds(numbers: Sequence[int], seed: int) -> np.ndarray:
    """[rows] uint32"""
    return (hashes(np.array(numbers), seed, _SEED) >> np.uint64(32)).astype(np.uint32)
