"""Records as whole steps: exact where the source has steps, within half of one elsewhere."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from made_records import made_record, made_signal

from medjax.data.ecg.leads import derive
from medjax.data.ecg.storage import NOT_MEASURED, quantise, restore, to_record, to_row, waveform_digest


@pytest.mark.parametrize("gain", [1000.0, 200.0, 204.8, 800.0, 1 / 0.00488, 1 / 0.00125, 163.934, 333.3, 4880.0])
def test_whole_steps_of_any_size_come_back_bit_for_bit(gain):
    steps = np.round(np.cumsum(np.random.default_rng(0).normal(0, 3, (12, 3000)), axis=1))
    signal = (steps / gain).astype(np.float32)
    stored, scale = quantise(signal)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(restore(stored, scale), signal)
    assert 1 / (gain * scale) == pytest.approx(round(1 / (gain * scale)))  # the step, or a whole part of it


def test_derived_leads_take_half_steps():
    signal = made_signal(3)
    measured = np.array([0, 1, 6, 7, 8, 9, 10, 11])
    signal[measured] = np.round(signal[measured] * 200) / 200  # 5 uV
    signal[2:6] = np.nan
    signal = derive(signal)
    stored, scale = quantise(signal)
    assert scale in (1 / 400, 1 / 2000)
    back = restore(stored, scale)
    np.testing.assert_array_equal(back[measured], signal[measured])
    np.testing.assert_allclose(back, signal, rtol=0, atol=2 * np.spacing(np.abs(signal).max()))


def test_a_signal_without_steps_is_off_by_half_a_step_at_most():
    signal = np.random.default_rng(1).normal(0, 1, (12, 2000)).astype(np.float32)
    stored, scale = quantise(signal)
    assert np.abs(stored).max() == 32767
    error = np.abs(restore(stored, scale) - signal)
    assert scale / 4 < error.max() <= scale / 2 * 1.01  # and float32


def test_more_steps_than_16_bits_hold_are_rounded():
    signal = (np.arange(12 * 1000).reshape(12, 1000) * 7 / 1000).astype(np.float32)  # to 84 mV in steps of 7 uV
    stored, scale = quantise(signal)
    assert scale == pytest.approx(0.007)
    np.testing.assert_array_equal(restore(stored, scale), signal)
    stored, scale = quantise(signal + np.float32(0.001) * (np.arange(1000) % 2).astype(np.float32))
    assert scale == pytest.approx(83.994 / 32767, rel=1e-3)


def test_what_was_not_measured_stays_so():
    signal = made_signal(1)
    signal[7] = np.nan
    signal[3, 10:20] = np.nan
    stored, scale = quantise(signal)
    assert (stored[7] == NOT_MEASURED).all()
    assert (stored == NOT_MEASURED).sum() == 5000 + 10
    np.testing.assert_array_equal(np.isnan(restore(stored, scale)), np.isnan(signal))
    nothing, scale = quantise(np.full((12, 5), np.nan, np.float32))
    assert (nothing == NOT_MEASURED).all()
    assert scale > 0
    zeros, scale = quantise(np.zeros((12, 5), np.float32))
    assert (restore(zeros, scale) == 0).all()


def test_a_row_is_the_record():
    facts = {"age_years": 63.5, "sex": "female", "patient": "P1", "device": "MAC", "time": "2024-05-01T09:30:00"}
    status = ("measured",) * 11 + ("flat",)
    signal = made_signal(2)
    signal[11] = np.nan
    record = made_record(
        2, signal=signal, rate=257.142857, status=status, mains_hz=50, labels={"AF": 1.0},
        codes=("1", "心房細動"),
        notes=("lead V6: flat",), **facts,
    )  # fmt: skip
    row = to_row(record, number=3, source="ward/r.hea")
    assert (row["source"], row["number"], row["fingerprint"].shape) == ("ward/r.hea", 3, (56,))
    assert row["waveform"] == waveform_digest(row["signal"])
    assert row["waveform"] == hashlib.sha256(row["signal"].astype("<i2").tobytes()).hexdigest()
    back = to_record(row)
    for name in ("id", "sampling_rate_hz", "status", "mains_hz", "labels", "codes", "notes", "format", *facts):
        assert getattr(back, name) == getattr(record, name), name
    assert back.source == "ward/r.hea"
    np.testing.assert_allclose(back.signal, record.signal, atol=1e-6)
    bare = to_record(to_row(made_record(1)))
    assert (bare.age_years, bare.sex, bare.patient, bare.device, bare.time, bare.mains_hz) == (None,) * 6


def test_digest_is_of_the_steps_alone():
    record = made_record(5)
    same = replace(record, id="other", age_years=3.0)
    doubled = replace(record, signal=(2 * record.signal).astype(np.float32))
    moved = replace(record, signal=np.roll(record.signal, 1, axis=1))
    rows = [to_row(r)["waveform"] for r in (record, same, doubled, moved)]
    assert rows[0] == rows[1] == rows[2]  # steps are found again whatever the gain
    assert rows[3] != rows[0]


def test_a_damaged_row_is_refused():
    row = to_row(made_record(1)) | {"status": "measured odd"}
    with pytest.raises(ValueError, match=r"record r001: status: got 'measured odd', expected 12 of measured, derived"):
        to_record(row)
