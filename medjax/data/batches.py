"""Training batches as a function of (seed, step), and held-out batches that never change, of whatever kind of record.

All rows of all epochs stand in one line: epoch 0's, then epoch 1's, each shuffled by itself. Step k of a run takes rows
k * batch to (k + 1) * batch of that line. So every record comes exactly once an epoch, a batch may begin in one epoch
and end in the next, nothing is left over at an epoch's end, and to resume is to know the step.

A process of a pod asks for its own rows of a batch, which are the same whoever asks:

    batch of 8 rows      one process: slice(0, 8)        four processes: slice(0, 2) … slice(6, 8)

`local_rows` says which those are for a sharding, `to_global` makes the global arrays of them. What a row is, is said by
the subclasses: packed documents (data.text.batches), windows of ECGs (data.ecg.batches).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax

_FOREVER = 1 << 40  # steps; what grain takes for the end of a stream without one


class _Rows(ABC):
    """Batches of `rows` rows, counted over all batches; a batch is a NamedTuple of arrays [rows, …]."""

    def __init__(self, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"batch: got {rows} rows, expected at least 1.")
        self.rows = rows

    @abstractmethod
    def _make(self, numbers: Sequence[int]) -> Any:
        """The batch of these rows."""

    @abstractmethod
    def _ids(self, number: int) -> list[str]:
        """Ids of the records in a row."""

    @abstractmethod
    def _check(self, step: int) -> None:
        """Raises IndexError for a batch that does not exist."""

    def batch_at(self, step: int, rows: slice | None = None) -> Any:
        """The batch of a step, counted from 0; of it only `rows`, where given."""
        return self._make(self._numbers(step, rows))

    def record_ids(self, step: int, rows: slice | None = None) -> list[str]:
        """Ids of the records of a batch, row after row."""
        return [name for number in self._numbers(step, rows) for name in self._ids(number)]

    def _numbers(self, step: int, rows: slice | None) -> range:
        self._check(step)
        start, stop, stride = (rows or slice(None)).indices(self.rows)
        if stride != 1 or not start < stop:
            raise ValueError(f"rows: got {rows}, expected a stretch of the {self.rows} rows of a batch.")
        return range(step * self.rows + start, step * self.rows + stop)


class Batches(_Rows):
    """Batches of a training run, without end.

    rows            rows of a batch, over all processes
    rows_per_epoch  rows that hold every record once; set by the subclass
    fill            share of an epoch's rows that is not padding
    """

    rows_per_epoch: int
    fill: float

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see every record once; seldom a whole number."""
        return self.rows_per_epoch / self.rows

    def steps(self, epochs: float) -> int:
        """Steps that see every record `epochs` times at least."""
        return int(np.ceil(epochs * self.rows_per_epoch / self.rows - 1e-9))

    def iterate(
        self, first: int, last: int | None = None, *, rows: slice | None = None, threads: int = 4, ahead: int = 4
    ) -> Iterator[Any]:
        """The batches from step `first` on (up to `last`, which is left out), made ahead of time.

        threads  that make batches
        ahead    finished batches kept waiting
        """
        import grain

        stop = _FOREVER if last is None else last
        batches = grain.MapDataset.range(first, stop).map(lambda step: self.batch_at(int(step), rows))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
        return iter(batches.to_iter_dataset(options))

    def _check(self, step: int) -> None:
        if step < 0:
            raise IndexError(f"step: got {step}, expected 0 or more.")


class HeldOut(_Rows):
    """The same batches at every evaluation: each record once, the last batch filled up with rows of weight 0.

    len() is the number of batches. filled, set by the subclass: rows that hold records.
    """

    filled: int

    def __len__(self) -> int:
        return -(-self.filled // self.rows)

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self):
            raise IndexError(f"held-out batch: got {step}, expected 0 to {len(self) - 1}.")


def local_rows(batch: Any) -> slice:
    """The rows of a batch that this process's devices hold.

    batch  tree of jax.ShapeDtypeStructs or arrays [rows, …] with shardings; all split their rows alike
    Raises ValueError (of JAX) where a sharding does not divide the batch.
    """
    import jax

    first = jax.tree.leaves(batch)[0]
    held = first.sharding.addressable_devices_indices_map(first.shape).values()
    spans = [index[0].indices(first.shape[0]) for index in held if index is not None]
    return slice(min(start for start, _, _ in spans), max(stop for _, stop, _ in spans))


def to_global(batch: Any, like: Any, *, first_row: int = 0) -> Any:
    """Global jax arrays of what this process has of a batch.

    batch  tree of NumPy arrays [rows of this process, …]; `local_rows(like).start` is first_row
    like   the whole batch: jax.ShapeDtypeStructs with shardings, of any axes

    Raises ValueError where this process's devices hold a row that `batch` lacks, or an array has another shape.
    """
    import jax

    needed = local_rows(like)

    def place(array: np.ndarray, whole: Any) -> "jax.Array":
        if needed.start < first_row or needed.stop > first_row + len(array) or array.shape[1:] != whole.shape[1:]:
            raise ValueError(
                f"to_global: got {array.shape} from row {first_row} on, expected rows {needed.start} to {needed.stop} "
                f"of {whole.shape}, which this process's devices hold; take the rows that local_rows names."
            )

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(whole.shape[0])
            return array[(slice(start - first_row, stop - first_row), *index[1:])]

        return jax.make_array_from_callback(whole.shape, whole.sharding, part)

    return jax.tree.map(place, batch, like)
