"""How the leads of a recording move together: what a copy of it keeps, whatever was done to its samples.

Correlations between the eight independent leads in two frequency bands. Rate, gain (of each lead), offset and slow
drifts leave them as they are; another start or length changes them as little as a few beats differ from the rest.
"""

import numpy as np

INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)  # I, II, V1 to V6; the other four follow from I and II
LEAST_LEADS = 3
_BANDS_HZ = ((2.0, 8.0), (8.0, 20.0))
_ABOVE, _BESIDE = np.triu_indices(len(INDEPENDENT), 1)
FINGERPRINT = len(_BANDS_HZ) * len(_ABOVE)


def fingerprint(signal: np.ndarray, sampling_rate_hz: float) -> np.ndarray:
    """Correlations of the leads in two bands; equal for rescaled, resampled and offset copies, near for shifted ones.

    signal   [12, samples] float32, NaN where not measured
    returns  [56] float32; all 0 where fewer than three of the eight independent leads hold a signal
    """
    rows = filled(signal)
    prints = np.zeros((len(_BANDS_HZ), len(_ABOVE)))
    frequency = np.fft.rfftfreq(rows.shape[1], 1 / sampling_rate_hz)
    spectrum = np.fft.rfft(rows)
    for band, (low, high) in enumerate(_BANDS_HZ):
        inside = spectrum[:, (frequency >= low) & (frequency < high)]
        covariance = np.real(inside @ inside.conj().T)
        size = np.sqrt(np.diag(covariance))
        known = size > 0
        if known.sum() >= LEAST_LEADS:
            size = np.where(known, size, 1)
            prints[band] = (covariance / np.outer(size, size))[_ABOVE, _BESIDE]
    return prints.ravel().astype(np.float32)


def filled(signal: np.ndarray) -> np.ndarray:
    """The independent leads [8, samples] float64 in mV, straight lines taken off, 0 where not measured.

    signal  [12, samples] float32, mV, NaN where not measured
    """
    rows = np.asarray(signal, np.float64)[list(INDEPENDENT)]
    known = ~np.isnan(rows)
    counts = np.maximum(known.sum(-1, keepdims=True), 1)
    rows = np.where(known, rows, 0)
    rows -= np.where(known, rows.sum(-1, keepdims=True) / counts, 0)
    time = np.linspace(-1, 1, rows.shape[1])
    time = np.where(known, time - (time * known).sum(-1, keepdims=True) / counts, 0)
    slope = (rows * time).sum(-1, keepdims=True) / np.maximum((time * time).sum(-1, keepdims=True), 1e-12)
    return rows - slope * time
