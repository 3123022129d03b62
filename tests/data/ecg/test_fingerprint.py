"""Fingerprints: their numbers by a plain computation, and what leaves them as they are."""

import numpy as np
import pytest
from made_records import made_signal

from medjax.data.ecg.fingerprint import FINGERPRINT, INDEPENDENT, filled, fingerprint


def test_it_is_the_correlation_of_band_limited_leads():
    signal = made_signal(1)
    rows = np.asarray(signal, float)[list(INDEPENDENT)]
    time = np.arange(5000)
    rows = np.stack([row - np.polyval(np.polyfit(time, row, 1), time) for row in rows])
    expected = []
    for low, high in ((2, 8), (8, 20)):
        spectrum, frequency = np.fft.rfft(rows), np.fft.rfftfreq(5000, 1 / 500)
        band = np.fft.irfft(np.where((frequency >= low) & (frequency < high), spectrum, 0), 5000)
        expected += [np.corrcoef(band)[i, j] for i in range(8) for j in range(i + 1, 8)]
    np.testing.assert_allclose(fingerprint(signal, 500.0), expected, atol=1e-5)
    assert len(expected) == FINGERPRINT


def test_gain_offset_and_drift_do_not_matter():
    signal, rng = made_signal(2), np.random.default_rng(0)
    drift = np.linspace(-1, 3, signal.shape[1]) * rng.normal(0, 1, (12, 1))
    other = (signal * rng.uniform(0.2, 4, (12, 1)) + rng.normal(0, 2, (12, 1)) + drift).astype(np.float32)
    np.testing.assert_allclose(fingerprint(other, 500.0), fingerprint(signal, 500.0), atol=1e-3)
    assert np.linalg.norm(fingerprint(made_signal(3), 500.0) - fingerprint(signal, 500.0)) > 1


def test_what_was_not_measured_is_zero():
    signal = made_signal(1)
    signal[7], signal[0, 100:200] = np.nan, np.nan
    rows = filled(signal)
    assert (rows[3] == 0).all()
    assert (rows[0, 100:200] == 0).all()
    assert rows[0].sum() == pytest.approx(0, abs=1e-6)
    assert np.isfinite(rows).all()
