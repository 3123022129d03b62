"""Whole documents packed into windows, the same way on every machine, and windows as arrays.

Packing is best-fit decreasing over all lengths: the longest document first, each into the fullest row that still has
room. That depends on the lengths alone, so it is done once, and every epoch has the same number of rows; what an epoch
shuffles is which document of a length takes which of its places, and the order of the rows:

    lengths 5 3 3 2 2 1, window 8  ->  rows (5 3) (3 2 2 1), one of the two documents of 3 tokens in each

Rows of equal room are interchangeable, so the work is one step for each pair of a length and a room, not one for each
document: a million documents take about a second. Best-fit packing of documents: arXiv 2404.10830; over a histogram of
lengths: arXiv 2107.02027.

The shuffle is a hash of (seed, epoch, document): no state, and no library's generator that may change its stream.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.hashing import hashes
from medjax.data.text.documents import Document

Array = Any  # NumPy on the host, a jax.Array once it is global
_ROWS, _DOCUMENTS = 1, 2  # what is shuffled


class Batch(NamedTuple):
    """Rows of packed documents, all [batch, window].

    tokens     int32, 0 where no document is
    targets    int32, the document's next token; 0 at its last one and at padding
    weights    float32, 1 where the target counts for the loss
    positions  int32, from 0 in each document; 0 at padding
    ends       int32, one past the document's last token in the row; padding: own index + 1
    """

    tokens: Array
    targets: Array
    weights: Array
    positions: Array
    ends: Array


class Epoch(NamedTuple):
    """The documents of each row of an epoch: row r holds documents[starts[r] : starts[r + 1]]."""

    documents: np.ndarray
    starts: np.ndarray

    def row(self, index: int) -> np.ndarray:
        return self.documents[self.starts[index] : self.starts[index + 1]]


class Packing:
    """Rows for every epoch of a set of documents.

    lengths  [documents] int, tokens of each, 1 to window
    window   tokens of a row
    pack     False puts one document in a row
    rows     rows of an epoch, the same for each
    fill     share of the rows' tokens that belong to documents

    Raises ValueError for no documents, and for a length outside of the window.
    """

    def __init__(self, lengths: np.ndarray, window: int, *, pack: bool = True) -> None:
        lengths = np.asarray(lengths, np.int64)
        if not len(lengths):
            raise ValueError("packing: got no documents, expected at least one; see the report on what was dropped.")
        for worst, bad in ((int(lengths.argmin()), lengths.min() < 1), (int(lengths.argmax()), lengths.max() > window)):
            if bad:
                raise ValueError(
                    f"packing: document {worst} has {lengths[worst]} tokens, expected 1 to {window}, the window; "
                    "tokenise with this window."
                )
        self.window = window
        self._by_length = np.argsort(-lengths, kind="stable")
        self._lengths = lengths
        self._row_of_place = best_fit_decreasing(lengths, window) if pack else np.arange(len(lengths))
        self.rows = int(self._row_of_place.max()) + 1
        self.fill = float(lengths.sum() / (self.rows * window))

    def epoch(self, seed: int, number: int) -> Epoch:
        """The rows of an epoch, counted from 0, shuffled by (seed, number)."""
        keys = hashes(np.arange(len(self._lengths)), seed, number, _DOCUMENTS)
        # places stand in order of falling length; so must the documents, shuffled within each length
        documents = np.lexsort((keys, -self._lengths))
        rank = np.empty(self.rows, np.int64)
        rank[np.argsort(hashes(np.arange(self.rows), seed, number, _ROWS), kind="stable")] = np.arange(self.rows)
        return _epoch(documents, rank[self._row_of_place], keys)

    def in_order(self) -> Epoch:
        """The rows without any shuffle."""
        return _epoch(self._by_length, self._row_of_place, np.arange(len(self._lengths)))


def _epoch(documents: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> Epoch:
    """documents[i] stands in row rows[i]; within a row they come in the order of their keys."""
    order = np.lexsort((keys[documents], rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return Epoch(documents[order], starts)


def best_fit_decreasing(lengths: np.ndarray, window: int) -> np.ndarray:
    """The row of each place, where place i belongs to the i-th longest document: [documents] int64.

    lengths  [documents] int, 1 to window
    """
    counts = np.bincount(lengths, minlength=window + 1)
    place_rows = np.empty(len(lengths), np.int64)
    rooms: list[list[np.ndarray]] = [[] for _ in range(window + 1)]  # room -> stretches of rows that have it
    used = np.zeros(window + 1, bool)  # rooms that some row has
    rows = place = 0

    def give(room: int, some: np.ndarray) -> None:
        if len(some):
            rooms[room].append(some)
            used[room] = True

    for length in range(window, 0, -1):
        left = int(counts[length])
        while left:
            fitting = length + int(np.argmax(used[length:]))
            each = fitting // length if used[fitting] else window // length
            if used[fitting]:
                free = np.concatenate(rooms[fitting])
                rooms[fitting] = []
                used[fitting] = False
            else:
                fitting = window
                free = np.arange(rows, rows + -(-left // each))
                rows += len(free)
            full = min(len(free), left // each)
            taken = np.repeat(free[:full], each)
            give(fitting - each * length, free[:full])
            rest = min(left - full * each, each) if full < len(free) else 0
            if rest:
                taken = np.concatenate([taken, np.repeat(free[full], rest)])
                give(fitting - rest * length, free[full : full + 1])
            give(fitting, free[full + bool(rest) :])
            place_rows[place : place + len(taken)] = taken
            place += len(taken)
            left -= len(taken)
    return place_rows


def fill_rows(rows: Sequence[Sequence[Document]], window: int) -> Batch:
    """Lay documents out in rows, one after the other; a row of none is all padding.

    Raises ValueError naming the document for rows longer than the window.
    """
    shape = (len(rows), window)
    tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    ends = np.tile(np.arange(1, window + 1, dtype=np.int32), (len(rows), 1))
    for r, documents in enumerate(rows):
        start = 0
        for document in documents:
            end = start + len(document.tokens)
            if end > window:
                raise ValueError(
                    f"row {r}: document {document.id} ends at token {end}, expected {window} at most, the window; "
                    "pack by the lengths of these documents."
                )
            tokens[r, start:end] = document.tokens
            targets[r, start : end - 1] = document.tokens[1:]
            weights[r, start : end - 1] = document.counted[1:]
            positions[r, start:end] = np.arange(end - start)
            ends[r, start:end] = end
            start = end
    return Batch(tokens, targets, weights, positions, ends)
