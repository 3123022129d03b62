"""What can be told of a recording from its samples alone: flat leads, hum of the mains, amplitudes, broken laws.

Nothing here changes a sample. `findings` puts what was found into sentences for EcgRecord.notes.
"""

from collections.abc import Iterator

import numpy as np

from medjax.data.ecg.leads import LEADS, einthoven_error, goldberger_error
from medjax.data.ecg.record import MAINS_HZ

LAW_TOLERANCE_MV = 0.02  # rounding of three leads to 5 uV steps stays below; mixed-up leads and wrong gains do not
AMPLITUDES_MV = (0.05, 20.0)  # peak to peak of the median lead: less is no heart, more is a wrong gain
_FLAT_MV = 0.005  # in which 98 % of a lead without an electrode lie: the dither of its converter
_DITHER_LEVELS = 8  # at most, when no lead has more
_HUM_RATIO = 10.0  # power at the mains frequency over that beside it
_HUM_MV = 0.002  # amplitude below which hum does not matter


def flat_leads(signal: np.ndarray) -> np.ndarray:
    """Which leads hold nothing where they are known: constant ones, and those of a few of the converter's steps.

    signal   [leads, samples] mV, NaN where not measured
    returns  [leads] bool; a lead that is NaN throughout is missing, not flat

    Where all leads are that small, they are flat only when they have a few levels: else a gain is wrong, not the leads.
    """
    constant = np.fmax.reduce(signal, axis=1) == np.fmin.reduce(signal, axis=1)
    quiet = np.array([_is_quiet(row[~np.isnan(row)]) for row in signal])
    known = ~np.isnan(signal).all(axis=1)
    if (quiet == known).all():
        quiet &= np.array([len(np.unique(row[~np.isnan(row)])) <= _DITHER_LEVELS for row in signal])
    return constant | quiet


def _is_quiet(values: np.ndarray) -> bool:
    if not len(values):
        return False
    low, high = np.percentile(values, (1, 99))
    return bool(high - low < _FLAT_MV)


def amplitude(signal: np.ndarray) -> float:
    """Peak to peak of the median lead, in the unit of signal [leads, samples]; flat and missing leads do not count.

    NaN where no lead is left.
    """
    known = signal[~np.isnan(signal).all(axis=1)]
    ranges = np.fmax.reduce(known, axis=1) - np.fmin.reduce(known, axis=1)
    return float(np.median(ranges[ranges > 0])) if (ranges > 0).any() else float("nan")


def mains_hz(signal: np.ndarray, sampling_rate_hz: float) -> int | None:
    """50 or 60 where hum of that frequency stands out, else None.

    signal   [leads, samples] mV, NaN where not measured

    Compares the power within 0.6 Hz of the frequency with the median of that 1.5 to 6 Hz beside it, in the median lead,
    from Hann windows of up to 4 s. A record whose rate cannot carry the frequency, or shorter than 1 s, tells nothing.
    """
    length = min(signal.shape[1], round(4 * sampling_rate_hz))
    leads = signal[~np.isnan(signal).all(axis=1)].astype(np.float64)
    if not len(leads) or length < sampling_rate_hz:
        return None
    starts = range(0, signal.shape[1] - length + 1, max(length // 2, 1))
    window = np.hanning(length)
    power = np.zeros((len(leads), length // 2 + 1))
    for start in starts:
        piece = leads[:, start : start + length]
        known = ~np.isnan(piece)
        middle = np.where(known, piece, 0.0).sum(axis=1, keepdims=True) / np.maximum(
            known.sum(axis=1, keepdims=True), 1
        )
        spectrum = np.fft.rfft(np.where(known, piece - middle, 0.0) * window)
        power += np.square(np.abs(spectrum)) / len(starts)
    frequencies = np.fft.rfftfreq(length, 1 / sampling_rate_hz)
    amplitudes = 2 * np.sqrt(power) / window.sum()
    found: dict[int, float] = {}
    for mains in MAINS_HZ:
        away = np.abs(frequencies - mains)
        near, beside = away <= 0.6, (away >= 1.5) & (away <= 6)
        if mains + 6 > sampling_rate_hz / 2 or not near.any() or not beside.any():
            continue
        ratio = float(np.median(power[:, near].max(axis=1) / (np.median(power[:, beside], axis=1) + 1e-300)))
        if ratio >= _HUM_RATIO and float(np.median(amplitudes[:, near].max(axis=1))) >= _HUM_MV:
            found[mains] = ratio
    return max(found, key=found.__getitem__) if found else None


def findings(signal: np.ndarray) -> Iterator[str]:
    """Sentences on what is odd about a signal [12, samples] in mV, rows in the order of LEADS, NaN: not measured."""
    for lead, row in zip(LEADS, signal, strict=True):
        unknown = int(np.isnan(row).sum())
        if 0 < unknown < row.size:
            yield f"{lead}: {unknown} of {row.size} samples were not measured"
    size = amplitude(signal)
    if not np.isnan(size) and not AMPLITUDES_MV[0] <= size <= AMPLITUDES_MV[1]:
        yield (
            f"amplitudes are implausible: {size:.3g} mV peak to peak in the median lead, expected "
            f"{AMPLITUDES_MV[0]:g} to {AMPLITUDES_MV[1]:g}; check the gain"
        )
    laws = (("I + III differs from II", einthoven_error), ("aVR, aVL or aVF differ from I and II", goldberger_error))
    for words, error in laws:
        if (value := error(signal)) > LAW_TOLERANCE_MV:
            yield f"{words} by up to {value:.3g} mV"
