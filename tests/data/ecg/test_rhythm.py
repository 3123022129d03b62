"""Heart rates against beats that cardiologists marked, and of made beats."""

from dataclasses import replace

import numpy as np
import pytest
from made_records import made_record

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.rhythm import heart_rate_bpm


def test_rates_are_those_of_marked_beats(shared_data):
    import wfdb

    folder = shared_data / "ecg" / "ludb" / "data"
    errors = []
    for number in range(1, 41):
        (record,) = read_ecg(folder / f"{number}.hea")
        marked = wfdb.rdann(str(folder / str(number)), "ii")
        beats = [sample for sample, symbol in zip(marked.sample, marked.symbol, strict=True) if symbol == "N"]
        found = heart_rate_bpm(record)
        if found is not None:
            errors.append(abs(found * np.median(np.diff(beats)) / (60 * record.sampling_rate_hz) - 1))
    assert len(errors) >= 39
    assert max(errors) < 0.05


def spikes(bpm, seconds=10.0, rate=500.0):
    t = np.arange(int(seconds * rate)) / rate
    return np.exp(-0.5 * (((t % (60 / bpm)) - 0.2) / 0.01) ** 2)


@pytest.mark.parametrize("bpm", [40.0, 75.0, 150.0])
def test_made_beats(bpm):
    record = made_record(1, seconds=10, rate=500.0)
    beats = np.tile(spikes(bpm), (12, 1)).astype(np.float32)
    assert heart_rate_bpm(replace(record, signal=beats)) == pytest.approx(bpm, rel=0.01)


def test_another_lead_serves_where_the_second_was_not_measured():
    record = made_record(1, seconds=10, rate=500.0)
    beats = np.full((12, 5000), np.nan, np.float32)
    beats[LEADS.index("V5")] = spikes(60.0)
    status = tuple("measured" if lead == "V5" else "missing" for lead in LEADS)
    assert heart_rate_bpm(replace(record, signal=beats, status=status)) == pytest.approx(60.0, rel=0.01)


def test_no_beats_no_rate():
    record = made_record(1, seconds=10, rate=500.0)
    assert heart_rate_bpm(replace(record, signal=np.zeros((12, 5000), np.float32))) is None
    assert heart_rate_bpm(replace(record, signal=record.signal[:, :400])) is None
