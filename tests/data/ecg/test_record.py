"""What an EcgRecord accepts, and errors that travel."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from medjax.data.ecg.record import LONGEST_SAMPLES, EcgFileError, EcgRecord


def record(**changes):
    signal = np.ones((12, 100), np.float32)
    signal[7] = np.nan
    status = tuple("flat" if row == 7 else "derived" if row == 2 else "measured" for row in range(12))
    made = EcgRecord(id="r1", signal=signal, sampling_rate_hz=250.0, status=status, source="a/r1.hea")
    return replace(made, **changes)


def test_length_and_usable_leads():
    made = record()
    assert (made.samples, made.duration_s) == (100, 0.4)
    np.testing.assert_array_equal(made.usable, [row != 7 for row in range(12)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id: got an empty text"),
        ({"signal": np.zeros((12, 5))}, r"signal: got float64 \(12, 5\), expected float32 \(12, samples\) in mV"),
        ({"signal": np.zeros((8, 5), np.float32)}, r"got float32 \(8, 5\)"),
        ({"signal": np.zeros((12, 0), np.float32)}, f"got 0 samples, expected 1 to {LONGEST_SAMPLES}"),
        (
            {"signal": np.broadcast_to(np.float32(0), (12, LONGEST_SAMPLES + 1))},
            f"got {LONGEST_SAMPLES + 1} samples, expected 1 to {LONGEST_SAMPLES}; cut it",
        ),
        ({"signal": np.full((12, 5), np.inf, np.float32)}, "got an infinite value"),
        ({"signal": np.zeros((12, 5), np.float32)}, "lead V2: got samples in a flat lead, expected NaN throughout"),
        ({"status": ("measured",) * 11}, "status: got"),
        ({"status": ("good",) * 12}, "status: got"),
        ({"sampling_rate_hz": 0.0}, "sampling_rate_hz: got 0.0, expected a number above 0"),
        ({"sampling_rate_hz": float("nan")}, "sampling_rate_hz: got nan"),
        ({"age_years": 300.0}, "age_years: got 300.0, expected 0 to 130"),
        ({"age_years": float("nan")}, "age_years: got nan"),
        ({"sex": "F"}, "sex: got F, expected one of female, male"),
        ({"mains_hz": 55}, "mains_hz: got 55, expected 50, 60 or None"),
        ({"time": "31.3.2021"}, "time: got 31.3.2021, expected ISO 8601"),
        ({"labels": {"lvsd": float("nan")}}, r"labels\['lvsd'\]: got nan, expected a finite number"),
    ],
)
def test_each_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        record(**changes)
    assert "a/r1.hea" in str(caught.value)


def test_file_errors_name_file_record_and_field_and_survive_pickling():
    error = EcgFileError("a/b.hea", "got 3, expected 4.", "b", "gain of lead V1")
    assert str(error) == "a/b.hea, record b, gain of lead V1: got 3, expected 4."
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, again.reason, again.record, again.field) == (
        str(error),
        "a/b.hea",
        "got 3, expected 4.",
        "b",
        "gain of lead V1",
    )
    assert str(EcgFileError("x.xml", "no ECG.")) == "x.xml: no ECG."
