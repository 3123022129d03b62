"""Training batches as a function of (seed, step), and held-out batches that never change.

All rows of all epochs stand in one line: epoch 0's, then epoch 1's, each shuffled by itself. Step k of a run takes rows
k * batch to (k + 1) * batch of that line. So every document comes exactly once an epoch, a batch may begin in one epoch
and end in the next, nothing is left over at an epoch's end, and to resume is to know the step.

A process of a pod asks for its own rows of a batch, which are the same whoever asks:

    batch of 8 rows      one process: slice(0, 8)        four processes: slice(0, 2) … slice(6, 8)

`local_rows` says which those are for a sharding, `to_global` makes the global arrays of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medjax.data.text.documents import Documents
from medjax.data.text.packing import Batch, Epoch, Packing, fill_rows

if TYPE_CHECKING:
    import jax

_FOREVER = 1 << 40  # steps; what grain takes for the end of a stream without one


class _Rows(ABC):
    """Batches of `rows` rows of `window` tokens, each made of the documents that `_row` names."""

    def __init__(self, documents: Documents, window: int, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"batch: got {rows} rows, expected at least 1.")
        self.rows = rows
        self.window = window
        self._documents = documents

    @abstractmethod
    def _row(self, number: int) -> np.ndarray:
        """Indices of the documents of a row, counted over all batches."""

    @abstractmethod
    def _check(self, step: int) -> None:
        """Raises IndexError for a batch that does not exist."""

    def batch_at(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, counted from 0; of it only `rows`, where given."""
        return fill_rows([[self._documents[i] for i in row] for row in self._indices(step, rows)], self.window)

    def document_ids(self, step: int, rows: slice | None = None) -> list[str]:
        """Ids of the documents of a batch, row after row."""
        return [self._documents[i].id for row in self._indices(step, rows) for i in row]

    def _indices(self, step: int, rows: slice | None) -> list[np.ndarray]:
        self._check(step)
        start, stop, stride = (rows or slice(None)).indices(self.rows)
        if stride != 1 or not start < stop:
            raise ValueError(f"rows: got {rows}, expected a stretch of the {self.rows} rows of a batch.")
        return [self._row(step * self.rows + row) for row in range(start, stop)]


class Batches(_Rows):
    """Batches of packed documents, shuffled anew every epoch.

    documents  what to train on
    window     tokens of a row
    rows       rows of a batch, over all processes
    seed       of the shuffle
    pack       False puts one document in a row

    rows_per_epoch and fill (the share of the rows' tokens that belong to documents) are those of every epoch.
    """

    def __init__(self, documents: Documents, *, window: int, rows: int, seed: int, pack: bool = True) -> None:
        super().__init__(documents, window, rows)
        packing = Packing(documents.lengths, window, pack=pack)
        self.rows_per_epoch, self.fill = packing.rows, packing.fill
        self._epoch = lru_cache(maxsize=2)(lambda number: packing.epoch(seed, number))

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see every document once; seldom a whole number."""
        return self.rows_per_epoch / self.rows

    def steps(self, epochs: float) -> int:
        """Steps that see every document `epochs` times at least."""
        return int(np.ceil(epochs * self.rows_per_epoch / self.rows - 1e-9))

    def iterate(
        self, first: int, last: int | None = None, *, rows: slice | None = None, threads: int = 4, ahead: int = 4
    ) -> Iterator[Batch]:
        """The batches from step `first` on (up to `last`, which is left out), made ahead of time.

        threads  that make batches
        ahead    finished batches kept waiting
        """
        import grain

        stop = _FOREVER if last is None else last
        batches = grain.MapDataset.range(first, stop).map(lambda step: self.batch_at(int(step), rows))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
        return iter(batches.to_iter_dataset(options))

    def _row(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self.rows_per_epoch)
        return self._epoch(epoch).row(place)

    def _check(self, step: int) -> None:
        if step < 0:
            raise IndexError(f"step: got {step}, expected 0 or more.")


class HeldOut(_Rows):
    """The same batches at every evaluation: each document once, in the order of packing, the last batch filled up.

    Rows without a document are padding of weight 0. len() is the number of batches; the arguments are those of Batches.
    """

    def __init__(self, documents: Documents, *, window: int, rows: int, pack: bool = True) -> None:
        super().__init__(documents, window, rows)
        packing = Packing(documents.lengths, window, pack=pack)
        self.fill = packing.fill
        self._epoch: Epoch = packing.in_order()
        self._filled = packing.rows

    def __len__(self) -> int:
        return -(-self._filled // self.rows)

    def _row(self, number: int) -> np.ndarray:
        return self._epoch.row(number) if number < self._filled else np.array([], np.int64)

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self):
            raise IndexError(f"held-out batch: got {step}, expected 0 to {len(self) - 1}.")


def real_tokens(batch: Batch) -> int:
    """Tokens of the batch that are not padding; documents have two tokens at least."""
    alone = np.asarray(batch.ends) == np.arange(1, batch.ends.shape[1] + 1)
    return int(np.sum((np.asarray(batch.positions) > 0) | ~alone))


def local_rows(sharding: "jax.sharding.Sharding", rows: int, window: int) -> slice:
    """The rows of a [rows, window] batch that this process's devices hold under a sharding.

    Raises ValueError (of JAX) where the sharding does not divide the batch.
    """
    held = sharding.addressable_devices_indices_map((rows, window)).values()
    spans = [index[0].indices(rows) for index in held if index is not None]
    return slice(min(start for start, _, _ in spans), max(stop for _, stop, _ in spans))


def to_global(batch: Batch, sharding: "jax.sharding.Sharding", *, rows: int | None = None, first_row: int = 0) -> Batch:
    """Global jax arrays [rows, window] of what this process has of a batch.

    batch      this process's rows: `rows.start` of `local_rows` is first_row
    sharding   of both axes; the sequence axis may be split too
    rows       of the whole batch; None: `batch` is the whole

    Raises ValueError where this process's devices hold a row that `batch` lacks.
    """
    import jax

    local, window = batch.tokens.shape
    shape = (rows or local, window)
    needed = local_rows(sharding, *shape)
    if needed.start < first_row or needed.stop > first_row + local:
        raise ValueError(
            f"to_global: got rows {first_row} to {first_row + local} of {shape[0]}, expected {needed.start} to "
            f"{needed.stop}, which this process's devices hold; take the rows that local_rows names."
        )

    def place(array: np.ndarray) -> "jax.Array":
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return array[start - first_row : stop - first_row, index[1]]

        return jax.make_array_from_callback(shape, sharding, part)

    return Batch(*map(place, batch))
