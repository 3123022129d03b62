"""The same recording stored twice: exact copies by their digest, altered ones by fingerprint and correlation.

A copy that was exported again has another sampling rate, gain (even lead by lead), offset, filter, start or length, and
its samples have nothing in common with the first. What such copies share is how the leads move together. So

  fingerprint  how they do, in 56 numbers that know neither rate nor gain nor offset, and hardly the start
  candidates   the nearest fingerprints of each record in a k-d tree, at most NEIGHBOURS and within REACH: n log n
  check        the largest correlation of the two signals over all lags, in the lags' overlap

Records without three usable leads have too little that could be compared: of them exact copies are found only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medjax.data.ecg.fingerprint import LEAST_LEADS, filled
from medjax.data.ecg.storage import restore

NEIGHBOURS = 8
REACH = 0.6  # Euclidean distance of fingerprints
CORRELATION = 0.985
_BAND_HZ = (2.0, 18.0)  # of the check
_GRID_HZ = 250  # lags are known to 2 ms
_EDGE_S = 0.3  # not compared: the filter rings there
_LEAST_OVERLAP_S = 2.5
_TREE_AXES = 12


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
    """

    recording: tuple[str, ...]
    pairs: tuple[Pair, ...]
    checked: int


def best_correlation(first: np.ndarray, first_hz: float, second: np.ndarray, second_hz: float) -> tuple[float, float]:
    """The largest correlation of two recordings over all lags, and that lag.

    first, second  [12, samples] float32, NaN where not measured, with their sampling rates in Hz
    returns        correlation in 2 to 18 Hz over the leads that both have, each lead at equal weight, and how many
                   seconds later the second starts; (0, 0) where they share fewer than three leads

    The overlap is at least 2.5 s and half of the shorter recording.
    """
    rows = [_on_grid(first, first_hz), _on_grid(second, second_hz)]
    shared = (rows[0] != 0).any(-1) & (rows[1] != 0).any(-1)
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


def find_twins(facts: Sequence[Fingerprinted], examples: Any, *, correlation: float = CORRELATION) -> Twins:
    """Which of the records are one recording.

    facts        of each record
    examples     its signal and scale under `examples[fact.row]`, read for candidates only
    correlation  from which on two records are one recording
    """
    first_of: dict[str, int] = {}
    pairs = []
    for place, fact in enumerate(facts):
        first = first_of.setdefault(fact.waveform, place)
        if first != place:
            pairs.append(Pair(first, place, True, 1.0, 0.0))
    checked = 0
    for first, second in candidates(
        np.stack([facts[i].fingerprint for i in first_of.values()]), list(first_of.values())
    ):
        checked += 1
        found, lag = best_correlation(*_signal(examples[facts[first].row]), *_signal(examples[facts[second].row]))
        if found >= correlation:
            pairs.append(Pair(first, second, False, found, lag))
    leader = _joined(len(facts), ((pair.first, pair.second) for pair in pairs))
    return Twins(tuple(facts[i].waveform for i in leader), tuple(pairs), checked)


def candidates(fingerprints: np.ndarray, places: Sequence[int], *, reach: float = REACH) -> Iterator[tuple[int, int]]:
    """Pairs of places whose fingerprints [records, 56] are close, each once, the lower place first."""
    from scipy.spatial import KDTree

    told = np.flatnonzero(fingerprints.any(-1))
    if len(told) < 2:
        return
    prints = fingerprints[told] - fingerprints[told].mean(0)
    # the axes along which they differ most: no pair is farther apart there, and trees are fast in few dimensions only
    axes = np.linalg.eigh(prints.T @ prints)[1][:, -_TREE_AXES:]
    near = KDTree(prints @ axes).query(prints @ axes, k=NEIGHBOURS + 1, distance_upper_bound=reach)[1]
    seen = set()
    for one, others in enumerate(near):
        for other in others[others < len(told)]:
            pair = min(one, int(other)), max(one, int(other))
            if other != one and pair not in seen and np.linalg.norm(prints[one] - prints[other]) <= reach:
                seen.add(pair)
                yield places[told[pair[0]]], places[told[pair[1]]]


def _signal(example: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    return restore(example["signal"], float(example["scale"])), float(example["sampling_rate_hz"])


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
