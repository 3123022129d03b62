"""Flat leads, amplitudes and hum, on signals whose answer is known."""

import numpy as np
import pytest
from ecg_files import truth

from medjax.data.ecg.quality import amplitude, findings, flat_leads, mains_hz


def test_flat_is_constant_where_known_and_missing_is_not_flat():
    signal = truth()
    signal[2], signal[5], signal[6] = 0.0, np.nan, 1.5
    signal[6, :500] = np.nan
    np.testing.assert_array_equal(np.flatnonzero(flat_leads(signal)), [2, 6])


def test_a_lead_in_which_only_the_converter_moves_is_flat():
    rng = np.random.default_rng(0)
    signal = truth()
    signal[3] = 0.001 * rng.integers(0, 2, 1000)  # one step of 1 uV
    signal[4] = 0.0005 * rng.normal(0, 1, 1000)
    signal[5] = np.where(np.arange(1000) < 30, 1.0, 0.0)  # 3 % of a pulse is a signal
    np.testing.assert_array_equal(np.flatnonzero(flat_leads(signal)), [3, 4])
    assert flat_leads(0.001 * rng.integers(0, 3, (12, 1000))).all()
    assert not flat_leads(truth() / 1000).any()  # a wrong gain is no fault of the leads


def test_amplitude_is_that_of_the_median_moving_lead():
    signal = np.zeros((12, 10))
    signal[:3, 0] = [1.0, 2.0, 30.0]
    signal[3] = np.nan
    assert amplitude(signal) == 2.0
    assert np.isnan(amplitude(np.full((12, 4), np.nan)))
    assert np.isnan(amplitude(np.zeros((12, 4))))


@pytest.mark.parametrize("rate", [250.0, 257.0, 300.0, 400.0, 500.0, 800.0, 1000.0])
@pytest.mark.parametrize("hum", [50, 60, None])
@pytest.mark.parametrize("seconds", [3, 10])
def test_hum_is_seen_at_every_rate(rate, hum, seconds):
    samples = round(seconds * rate)
    signal = truth(samples, rate) + np.random.default_rng(0).normal(0, 0.005, (12, samples))
    if hum:
        signal += 0.02 * np.sin(2 * np.pi * hum * np.arange(samples) / rate + 1)
    signal[3] = np.nan
    signal[4, : samples // 3] = np.nan
    assert mains_hz(signal, rate) == hum


def test_hum_that_a_rate_cannot_carry_or_a_second_cannot_show_is_not_claimed():
    t = np.arange(1000) / 100
    signal = truth(1000, 100.0) + 0.05 * np.sin(2 * np.pi * 40 * t)  # 60 Hz folds back to 40 Hz
    assert mains_hz(signal, 100.0) is None
    assert mains_hz(truth(300, 500.0), 500.0) is None
    assert mains_hz(np.full((12, 5000), np.nan), 500.0) is None


def test_the_stronger_hum_wins_and_other_tones_do_not_count():
    t = np.arange(5000) / 500
    quiet = np.random.default_rng(1).normal(0, 0.005, (12, 5000))
    tones = {hz: np.sin(2 * np.pi * hz * t) for hz in (47, 50, 60)}
    assert mains_hz(quiet + 0.01 * tones[50] + 0.03 * tones[60], 500.0) == 60
    assert mains_hz(quiet + 0.03 * tones[47], 500.0) is None


def test_findings_are_sentences_with_numbers():
    signal = truth()
    assert list(findings(signal)) == []
    signal[6, :12] = np.nan
    signal[2] += 0.1
    assert list(findings(signal)) == [
        "V1: 12 of 1000 samples were not measured",
        "I + III differs from II by up to 0.1 mV",
    ]
    (sentence,) = findings(truth() * 40)
    assert sentence.startswith("amplitudes are implausible: ")
    assert sentence.endswith("expected 0.05 to 20; check the gain")
