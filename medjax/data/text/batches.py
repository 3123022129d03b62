"""Batches of documents: rows of a fixed window, each of one or several documents (data.text.packing)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from medjax.data import batches
from medjax.data.text.documents import Documents
from medjax.data.text.packing import Batch, Epoch, Packing, fill_rows


class DocumentBatches(batches.Batches):
    """Batches of packed documents, shuffled anew every epoch.

    documents  what to train on
    window     tokens of a row
    rows       rows of a batch, over all processes
    seed       of the shuffle
    pack       False puts one document in a row

    rows_per_epoch and fill (the share of the rows' tokens that belong to documents) are those of every epoch.
    """

    def __init__(self, documents: Documents, *, window: int, rows: int, seed: int, pack: bool = True) -> None:
        super().__init__(rows)
        self.window = window
        self._documents = documents
        packing = Packing(documents.lengths, window, pack=pack)
        self.rows_per_epoch, self.fill = packing.rows, packing.fill
        self._epoch = lru_cache(maxsize=2)(lambda number: packing.epoch(seed, number))

    def _row(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self.rows_per_epoch)
        return self._epoch(epoch).row(place)

    def _make(self, numbers: Sequence[int]) -> Batch:
        return fill_rows([[self._documents[i] for i in self._row(number)] for number in numbers], self.window)

    def _ids(self, number: int) -> list[str]:
        return [self._documents[i].id for i in self._row(number)]


class HeldOutDocuments(batches.HeldOut):
    """Each document once, in the order of packing; rows beyond the last are padding of weight 0.

    The arguments are those of DocumentBatches.
    """

    def __init__(self, documents: Documents, *, window: int, rows: int, pack: bool = True) -> None:
        super().__init__(rows)
        self.window = window
        self._documents = documents
        packing = Packing(documents.lengths, window, pack=pack)
        self.fill = packing.fill
        self._epoch: Epoch = packing.in_order()
        self.filled = packing.rows

    def _row(self, number: int) -> np.ndarray:
        return self._epoch.row(number) if number < self.filled else np.array([], np.int64)

    def _make(self, numbers: Sequence[int]) -> Batch:
        return fill_rows([[self._documents[i] for i in self._row(number)] for number in numbers], self.window)

    def _ids(self, number: int) -> list[str]:
        return [self._documents[i].id for i in self._row(number)]


def real_tokens(batch: Batch) -> int:
    """Tokens of the batch that are not padding; documents have two tokens at least."""
    alone = np.asarray(batch.ends) == np.arange(1, batch.ends.shape[1] + 1)
    return int(np.sum((np.asarray(batch.positions) > 0) | ~alone))
