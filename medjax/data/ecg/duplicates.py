"""The same recording stored twice: exact copies by their digest, altered ones by fingerprint and correlation.

A copy that was exported again has another sampling rate, gain (even lead by lead), offset, filter, start or length, and
its samples have nothing in common with the first. What such copies share is how the leads move together. So

  fingerprint  how they do, in 56 numbers that know neither rate nor gain nor offset, and hardly the start
  candidates   the nearest fingerprints of each record in a k-d tree, at most NEIGHBOURS and within REACH: n log n
  check        the largest correlation of the two signals over all lags, in the lags' overlap

The checks are at most NEIGHBOURS a record, whatever the records are like; processes share them. Where a record has more
neighbours than that within REACH, a copy that was cut or filtered much may lie behind them: such records are counted.
Records without three usable leads have too little that could be compared: of them exact copies are found only.
"""

import multiprocessing
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medjax.data.ecg.fingerprint import LEAST_LEADS, filled
from medjax.data.ecg.storage import restore
from medjax.data.processes import uninterrupted

NEIGHBOURS = 8
REACH = 0.6  # Euclidean distance of fingerprints
CORRELATION = 0.985
_BAND_HZ = (2.0, 18.0)  # of the check
_GRID_HZ = 250  # lags are known to 2 ms
_EDGE_S = 0.3  # not compared: the filter rings there
_LEAST_OVERLAP_S = 2.5
_TREE_AXES = 12
_LOOKED_AT = 4 * NEIGHBOURS  # nearest along these axes, of which the nearest in all count
_ASKED_TOGETHER = 50_000  # fingerprints in one question to the tree
_CHECKED_TOGETHER = 200  # pairs that a process gets
_FEW = 2000  # pairs below which processes would take longer to start than to help
_REMEMBERED = 64  # signals, while pairs that share them are checked

Progress = Callable[[int, int], None]


class Fingerprinted(Protocol):
    """What is known of a record: `index.Facts`."""

    row: int
    waveform: str
    fingerprint: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two records, by their places, that are one recording.

    correlation  1.0 for exact copies
    lag_s        how much later the second starts
    """

    first: int
    second: int
    exact: bool
    correlation: float
    lag_s: float


@dataclass(frozen=True)
class Twins:
    """Which records are one recording.

    recording  of each record: the digest of the samples of the first that is the same recording
    pairs      what ties them; of n exact copies the n - 1 pairs with the first
    checked    candidates that were compared sample by sample
    crowded    records with more neighbours than were compared
    """

    recording: tuple[str, ...]
    pairs: tuple[Pair, ...]
    checked: int
    crowded: int = 0


def best_correlation(first: np.ndarray, first_hz: float, second: np.ndarray, second_hz: float) -> tuple[float, float]:
    """The largest correlation of two recordings over all lags, and that lag.

    first, second  [12, samples] float32, NaN where not measured, with their sampling rates in Hz
    returns        correlation in 2 to 18 Hz over the leads that both have, each lead at equal weight, and how many
                   seconds later the second starts; (0, 0) where they share fewer than three leads

    The overlap is at least 2.5 s and half of the shorter recording.
    """
    return _best_lag(_on_grid(first, first_hz), _on_grid(second, second_hz))


def _best_lag(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlation and lag of two recordings on the grid, [8, samples] float64, 0 in leads that are not there."""
    rows = [first, second]
    shared = (first != 0).any(-1) & (second != 0).any(-1)
    if shared.sum() < LEAST_LEADS:
        return 0.0, 0.0
    rows = [row[shared] / np.sqrt((row[shared] ** 2).sum(-1, keepdims=True)) for row in rows]
    length = [row.shape[1] for row in rows]
    padded = _round_length(sum(length))
    spectra = [np.fft.rfft(row, padded) for row in rows]
    products = np.fft.irfft((spectra[0] * spectra[1].conj()).sum(0), padded)  # at each lag, negative ones at the end
    least = min(max(round(_LEAST_OVERLAP_S * _GRID_HZ), min(length) // 2), *length)
    lags = np.arange(least - length[1], length[0] - least + 1)
    sums = [np.concatenate([[0.0], np.cumsum((row**2).sum(0))]) for row in rows]
    start, end = np.maximum(lags, 0), np.minimum(lags + length[1], length[0])
    inside = (sums[0][end] - sums[0][start]) * (sums[1][end - lags] - sums[1][start - lags])
    correlation = products[lags] / np.sqrt(np.maximum(inside, 1e-12))
    best = int(np.argmax(correlation))
    return min(float(correlation[best]), 1.0), float(lags[best] / _GRID_HZ)


def _on_grid(signal: np.ndarray, sampling_rate_hz: float) -> np.ndarray:
    """The independent leads [8, samples] of the check's band at _GRID_HZ, whatever their rate was."""
    samples = signal.shape[1]
    spectrum = np.fft.rfft(filled(signal))
    frequency = np.fft.rfftfreq(samples, 1 / sampling_rate_hz)
    spectrum[:, (frequency < _BAND_HZ[0]) | (frequency > _BAND_HZ[1])] = 0
    count = max(2, round(samples / sampling_rate_hz * _GRID_HZ))
    edge = min(round(_EDGE_S * _GRID_HZ), count // 4)
    return np.fft.irfft(spectrum[:, : count // 2 + 1], count)[:, edge : count - edge]


def _round_length(samples: int) -> int:
    """The next length that FFTs are fast at."""
    from scipy.fft import next_fast_len

    return next_fast_len(samples, real=True)


def find_twins(
    facts: Sequence[Fingerprinted],
    examples: Any,
    *,
    correlation: float = CORRELATION,
    processes: int = 1,
    progress: Progress = lambda done, total: None,
) -> Twins:
    """Which of the records are one recording.

    facts        of each record
    examples     its signal and scale under `examples[fact.row]`, read for candidates only; pickled for processes
    correlation  from which on two records are one recording
    processes    that check the candidates
    progress     called with pairs checked and pairs in all
    """
    first_of: dict[str, int] = {}
    pairs = []
    for place, fact in enumerate(facts):
        first = first_of.setdefault(fact.waveform, place)
        if first != place:
            pairs.append(Pair(first, place, True, 1.0, 0.0))
    places = np.fromiter(first_of.values(), np.int64)
    near, crowded = candidates(np.stack([facts[place].fingerprint for place in places]), places)
    rows = np.array([fact.row for fact in facts], np.int64)[near]
    checked = 0
    for found in _compared(examples, rows, processes):
        for (one, other), (alike, lag) in zip(near[checked : checked + len(found)].tolist(), found, strict=True):
            if alike >= correlation:
                pairs.append(Pair(one, other, False, alike, lag))
        checked += len(found)
        progress(checked, len(near))
    leader = _joined(len(facts), ((pair.first, pair.second) for pair in pairs))
    return Twins(tuple(facts[i].waveform for i in leader), tuple(pairs), checked, crowded)


def candidates(fingerprints: np.ndarray, places: np.ndarray, *, reach: float = REACH) -> tuple[np.ndarray, int]:
    """Pairs of records whose fingerprints are close.

    fingerprints  [records, 56]
    places        [records], rising, what the records are called
    returns       [pairs, 2] places, each pair once, the lower place first, in rising order; and how many records have
                  more neighbours within reach than NEIGHBOURS, of which the nearest count
    """
    from scipy.spatial import KDTree

    told = np.flatnonzero(fingerprints.any(-1))
    if len(told) < 2:
        return np.empty((0, 2), np.int64), 0
    prints = fingerprints[told] - fingerprints[told].mean(0)
    # the axes along which they differ most: no pair is farther apart there, and trees are fast in few dimensions only
    axes = np.linalg.eigh(prints.T @ prints)[1][:, -_TREE_AXES:]
    tree = KDTree(prints @ axes)
    found, crowded = [], 0
    for start in range(0, len(told), _ASKED_TOGETHER):
        some = np.arange(start, min(start + _ASKED_TOGETHER, len(told)))
        near = tree.query(prints[some] @ axes, k=_LOOKED_AT, distance_upper_bound=reach)[1]
        one, other = np.repeat(some, _LOOKED_AT), near.ravel()
        one, other = one[keep := (other < len(told)) & (other != one)], other[keep]
        distance = np.linalg.norm(prints[one] - prints[other], axis=-1)
        one, other, distance = one[keep := distance <= reach], other[keep], distance[keep]
        order = np.lexsort((distance, one))
        one, other = one[order], other[order]
        rank = np.arange(len(one)) - np.searchsorted(one, one)  # among the neighbours of its record
        crowded += len(np.unique(one[rank >= NEIGHBOURS]))
        one, other = one[rank < NEIGHBOURS], other[rank < NEIGHBOURS]
        found.append(np.sort(np.stack([one, other], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return np.asarray(places)[told[pairs]], crowded


def _compared(examples: Any, rows: np.ndarray, processes: int) -> Iterator[list[tuple[float, float]]]:
    """Correlation and lag of pairs of rows [pairs, 2], in order, so many together as come."""
    parts = [rows[start : start + _CHECKED_TOGETHER] for start in range(0, len(rows), _CHECKED_TOGETHER)]
    if processes < 2 or len(rows) < _FEW:
        yield from map(_Checker(examples), parts)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (examples,))
    try:
        with uninterrupted():
            checked = pool.map(_check, parts)  # starts the processes
        yield from checked
    finally:
        pool.shutdown(cancel_futures=True)


class _Checker:
    """Compares pairs; a signal that several pairs have is read once."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        self._grids: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, rows: np.ndarray) -> list[tuple[float, float]]:
        return [_best_lag(self._grid(one), self._grid(other)) for one, other in rows.tolist()]

    def _grid(self, row: int) -> np.ndarray:
        if row in self._grids:
            self._grids.move_to_end(row)
            return self._grids[row]
        example = self._examples[row]
        whole = restore(example["signal"], float(example["scale"]))
        self._grids[row] = grid = _on_grid(whole, float(example["sampling_rate_hz"]))
        if len(self._grids) > _REMEMBERED:
            self._grids.popitem(last=False)
        return grid


_checker: _Checker | None = None  # of a process of the pool


def _begin(examples: Any) -> None:
    global _checker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _checker = _Checker(examples)


def _check(rows: np.ndarray) -> list[tuple[float, float]]:
    assert _checker is not None
    return _checker(rows)


def _joined(count: int, ties: Iterator[tuple[int, int]]) -> list[int]:
    """The first member of each element's group, where ties join groups."""
    leader = list(range(count))

    def top(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for one, other in ties:
        low, high = sorted((top(one), top(other)))
        leader[high] = low
    return [top(i) for i in range(count)]
