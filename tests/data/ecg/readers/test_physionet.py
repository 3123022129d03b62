"""WFDB records: equal to wfdb, wrong gains, damaged files, comments."""

import numpy as np
import pytest
from ecg_files import STEP_UV, heart, truth, write_wfdb

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.readers.gains import calibrate
from medjax.data.ecg.record import LONGEST_SAMPLES, EcgFileError


@pytest.mark.parametrize("mat", [False, True])
@pytest.mark.parametrize("unit", ["mV", "mv", "uV"])
def test_both_kinds_of_signal_file_and_units(mat, unit, tmp_path):
    per_unit = 1 / STEP_UV if unit == "uV" else 1000 / STEP_UV
    header = write_wfdb(tmp_path, "r1", heart(), mat=mat, unit=unit, gains=per_unit)
    for path in (header, header.with_suffix(".mat" if mat else ".dat")):
        (record,) = read_ecg(path)
        np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
        assert (record.id, record.source, record.notes) == ("r1", str(header), ())


@pytest.mark.parametrize(("rate", "seconds"), [(300, 3), (800, 10), (257, 10), (500, 60), (100, 10), (1000, 3)])
def test_rates_and_lengths_are_kept_as_they_are(rate, seconds, tmp_path):
    digital = heart(rate * seconds, rate)
    (record,) = read_ecg(write_wfdb(tmp_path, "r1", digital, rate=rate))
    assert (record.sampling_rate_hz, record.samples, record.duration_s) == (rate, rate * seconds, seconds)
    np.testing.assert_allclose(record.signal, digital * STEP_UV / 1000, atol=1e-6)


@pytest.mark.parametrize("form", ["16", "212", "24", "32", "80"])
def test_other_formats_equal_wfdb_and_keep_what_was_not_measured(form, tmp_path):
    import wfdb

    signal = truth() * (0.2 if form == "80" else 1)
    signal[7, 10:30] = np.nan
    gain = [40.0 if form == "80" else 200.0] * 12
    wfdb.wrsamp(
        "r1", 500, ["mV"] * 12, list(LEADS), signal.T, fmt=[form] * 12, adc_gain=gain, baseline=[0] * 12,
        write_dir=str(tmp_path),
    )  # fmt: skip
    (record,) = read_ecg(tmp_path / "r1.hea")
    np.testing.assert_allclose(record.signal, wfdb.rdrecord(str(tmp_path / "r1")).p_signal.T, atol=1e-6)
    assert np.isnan(record.signal[7, 10:30]).all()
    assert "V2: 20 of 1000 samples were not measured" in record.notes


def test_a_record_name_that_ends_in_mat(tmp_path):
    (record,) = read_ecg(write_wfdb(tmp_path, "E1", heart(), mat=True, record="E1.mat"))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    header = tmp_path / "E1.hea"
    header.write_text(header.read_text().replace("E1.mat 16+24", "E1.mat 16x1+24"))  # a form that only wfdb reads
    (record,) = read_ecg(header)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)


def test_gains_that_break_the_laws_are_not_believed(tmp_path):
    microvolts = heart() * STEP_UV
    gains = np.ptp(microvolts, axis=1)  # each lead scaled to a range of 1, as in LUDB
    (record,) = read_ecg(write_wfdb(tmp_path, "1", microvolts, gains=gains, names=[lead.lower() for lead in LEADS]))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    (note,) = record.notes
    assert note.startswith(f"wrong gain in the header ({gains.min():g} to {gains.max():g} per mV): it breaks the laws")


@pytest.mark.parametrize(("gain", "step"), [(200.0, 5.0), (4880.0, 4.88), (204.918, 4.88)])
def test_microvolts_in_steps_whose_header_states_the_step(gain, step, tmp_path):
    microvolts = np.round(2 * heart() * step).astype(np.int16)  # 200 per mV would make 5.5 mV of them
    (record,) = read_ecg(write_wfdb(tmp_path, "E1", microvolts, gains=gain))
    np.testing.assert_allclose(record.signal, microvolts / 1000, atol=1e-6)
    assert record.notes[0] == (
        f"wrong gain in the header ({gain:g} per mV): the stored numbers go in steps of "
        f"{step if gain != 204.918 else 1000 / gain:g}, which are microvolts; read as 1000 per mV"
    )


@pytest.mark.parametrize(("gain", "step", "size"), [(5000.0, 5, 11), (200.0, 5, 11)])
def test_steps_alone_do_not_overrule_a_plausible_header(gain, step, size):
    """A converter of 1 uV at 5000 per mV, one of 25 uV at 200 per mV: both amplitudes could be."""
    digital = step * np.round(heart() * size * gain / 1000 / step)
    signal, notes = calibrate(digital, LEADS, np.full(12, gain), np.zeros(12))
    np.testing.assert_allclose(signal, digital / gain)
    assert notes == [
        f"gain of {gain:g} per mV may be wrong: the stored numbers go in steps of {step}, as microvolts do; left as "
        "stated"
    ]


def test_a_negative_gain_turns_the_trace_and_is_noted():
    gains = np.array([-200.0] + [200.0] * 11)
    signal, notes = calibrate(np.round(truth() * gains[:, None]), LEADS, gains, np.zeros(12))
    np.testing.assert_allclose(signal, truth(), atol=0.003)
    assert notes == ["gain of I is negative: turned over, as stated"]


@pytest.mark.parametrize("gain", [100.0, 200.0, 204.9, 400.0, 500.0, 1000.0, 2000.0, 4880.0])
def test_right_gains_are_believed(gain):
    rng = np.random.default_rng(0)
    volts = truth() + np.cumsum(rng.normal(0, 0.003, 1000))
    digital = np.round(volts * gain)
    signal, notes = calibrate(digital, LEADS, np.full(12, gain), np.zeros(12))
    assert notes == []
    np.testing.assert_allclose(signal, volts, atol=0.51 / gain)


def test_right_but_different_gains_and_low_voltage_are_believed():
    gains = np.array([200.0, 400.0] * 6)
    digital = np.round(truth() * gains[:, None])
    signal, notes = calibrate(digital, LEADS, gains, np.zeros(12))
    assert notes == []
    np.testing.assert_allclose(signal, truth(), atol=0.003)
    small, notes = calibrate(np.round(truth() * 0.1 * 200), LEADS, np.full(12, 200.0), np.zeros(12))
    assert notes == []
    assert np.ptp(small[1]) == pytest.approx(0.1 * np.ptp(truth()[1]), abs=0.006)


def test_a_gain_that_makes_no_ecg_is_not_believed():
    signal, notes = calibrate(heart() * 5.0, LEADS, np.full(12, 1.0), np.zeros(12))
    np.testing.assert_allclose(signal, truth(), atol=1e-9)
    assert "mV are no ECG's; read as 1000 per mV" in notes[0]


def test_baseline_or_else_the_zero_of_the_adc(tmp_path):
    header = write_wfdb(tmp_path, "r1", heart() + 1024)
    header.write_text(header.read_text().replace("(0)/mV", "(1024)/mV"))
    np.testing.assert_allclose(read_ecg(header)[0].signal, truth(), atol=1e-6)
    header.write_text(header.read_text().replace("(1024)/mV 16 0", "/mV 16 1024"))
    np.testing.assert_allclose(read_ecg(header)[0].signal, truth(), atol=1e-6)


def test_comments_give_age_sex_and_diagnoses(tmp_path):
    said = ["Age: 51", " Sex: Male", "Dx: 164889003,59118001", "Rx: Unknown"]
    (record,) = read_ecg(write_wfdb(tmp_path, "r1", heart(), comments=said))
    assert (record.age_years, record.sex, record.codes) == (51.0, "male", ("164889003", "59118001"))
    said = ["<age>: >89", "<sex>: F", "<diagnoses>:", "Rhythm: Sinus bradycardia.", "Left ventricular hypertrophy. "]
    (record,) = read_ecg(write_wfdb(tmp_path, "r2", heart(), comments=said))
    assert (record.age_years, record.sex) == (90.0, "female")
    assert record.codes == ("Rhythm: Sinus bradycardia.", "Left ventricular hypertrophy.")
    assert record.notes == ("age: got '>89', taken as 90",)


def test_time_of_the_record_line(tmp_path):
    header = write_wfdb(tmp_path, "r1", heart())
    header.write_text(header.read_text().replace("500 1000\n", "500 1000 08:15:30 31/03/2021\n"))
    assert read_ecg(header)[0].time == "2021-03-31T08:15:30"


def test_truncated_and_missing_signal_files(tmp_path):
    header = write_wfdb(tmp_path, "r1", heart())
    data = tmp_path / "r1.dat"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(EcgFileError) as caught:
        read_ecg(header)
    assert str(caught.value) == (
        f"{header}, record r1, signal: r1.dat has 23900 bytes, expected 24000 for 12 channels of 1000 samples; "
        "the file is truncated or the header belongs to another."
    )
    data.unlink()
    with pytest.raises(EcgFileError, match=r"record r1, signal file: the header names r1\.dat, which is not there"):
        read_ecg(header)
    write_wfdb(tmp_path, "r2", heart(), record="r2.dat")
    (tmp_path / "r2.dat").write_bytes(b"12")
    with pytest.raises(EcgFileError, match=r"record r2, signal: r2\.dat has 2 bytes, expected 24000"):
        read_ecg(tmp_path / "r2.hea")


@pytest.mark.parametrize("name", ["../r0.dat", "/etc/r0.dat", "deep/r0.dat", "..\\\\r0.dat", ".."])
@pytest.mark.parametrize("form", ["16", "16x1"])  # read directly, and by wfdb
def test_signal_files_of_other_folders_are_refused(name, form, tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    write_wfdb(tmp_path, "r0", heart())
    write_wfdb(tmp_path / "sub" / "deep", "r0", heart())
    header = write_wfdb(tmp_path / "sub", "r1", heart())
    header.write_text(header.read_text().replace("r1.dat 16", f"{name} {form}"))
    with pytest.raises(EcgFileError) as caught:
        read_ecg(header)
    assert str(caught.value) == (
        f"{header}, record r1, signal file: got {name!r}, expected a plain file name; put the signal beside the header "
        "and correct the name."
    )
    (tmp_path / "sub" / "whole.hea").write_text("whole/2 12 500 2000\nr1 1000\nr1 1000\n")
    with pytest.raises(EcgFileError, match=r"r1\.hea, record r1, signal file: got .*, expected a plain file name"):
        read_ecg(tmp_path / "sub" / "whole.hea")


def test_a_time_that_is_none_costs_the_time_only(tmp_path):
    header = write_wfdb(tmp_path, "r1", heart())
    header.write_text(header.read_text().replace("500 1000\n", "500 1000 08:00:00 00/00/0000\n"))
    (record,) = read_ecg(header)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert (record.time, record.notes) == (None, ("time: got '00/00/0000 08:00:00', which is none, left unknown",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("r1 12 500 1000", f"r1 12 500 {LONGEST_SAMPLES + 1}", f"got 12 channels of {LONGEST_SAMPLES + 1} samples"),
        ("r1 12 500 1000", "r1 12 500 0", "got 12 channels of 0 samples"),
        ("r1 12 500 1000", "r1 12 0 1000", r"sampling rate: got 0 Hz, expected 25 to 50000\."),
        ("r1 12 500 1000", "r1 13 500 1000", "not a WFDB header|wfdb cannot read|cannot be read"),
        ("r1 12 500 1000", "nonsense", "not a WFDB header"),
        ("200(0)/mV", "200(0)/mmHg", r"units: got the units mmHg"),
    ],
)
def test_headers_in_error(old, new, message, tmp_path):
    header = write_wfdb(tmp_path, "r1", heart())
    header.write_text(header.read_text().replace(old, new))
    with pytest.raises(EcgFileError, match=message) as caught:
        read_ecg(header)
    assert str(caught.value).startswith(f"{header}, record r1")


def test_a_changed_signal_and_a_missing_gain_are_noted(tmp_path):
    header = write_wfdb(tmp_path, "r1", heart())
    data = bytearray((tmp_path / "r1.dat").read_bytes())
    data[0] ^= 1
    (tmp_path / "r1.dat").write_bytes(data)
    (note,) = read_ecg(header)[0].notes
    assert note == "checksum in the header differs for I: signal or header was changed"
    header = write_wfdb(tmp_path, "r2", heart())
    header.write_text(header.read_text().replace(" 200(0)/mV 16", " 0(0)/mV 16"))
    (record,) = read_ecg(header)
    assert record.notes == ("the header states no gain for some channels: read as 200 per mV, the default of WFDB",)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)


def test_nan_flat_zero_and_other_channels(tmp_path):
    digital = heart()
    digital[8, 100:200], digital[9], digital[10] = -32768, 7, -32768
    names = [*LEADS[:11], "vx"]
    (record,) = read_ecg(write_wfdb(tmp_path, "r1", digital, names=names))
    assert record.status[8:] == ("measured", "flat", "missing", "missing")
    assert np.isnan(record.signal[8, 100:200]).all()
    assert np.isnan(record.signal).sum() == 100 + 3 * 1000
    assert record.notes == (
        "channels 'vx': not among the twelve leads, left out",
        "leads V5 V6: missing",
        "leads V4: flat",
        "V3: 100 of 1000 samples were not measured",
    )
    (record,) = read_ecg(write_wfdb(tmp_path, "zero", np.zeros((12, 8000), np.int16), rate=800))
    assert (record.status, record.usable.any()) == (("flat",) * 12, np.False_)
    assert record.notes[-1] == "no lead holds a signal: nothing of this record can be used"


def test_the_same_lead_twice(tmp_path):
    (record,) = read_ecg(write_wfdb(tmp_path, "r1", heart()[[0, 0, 1]], names=["I", "lead i", "II"]))
    assert "I: stored twice, alike" in record.notes
    with pytest.raises(EcgFileError, match=r"record r2, I: got two different channels of this name"):
        read_ecg(write_wfdb(tmp_path, "r2", heart()[[0, 1]], names=["I", "DI"]))
    with pytest.raises(EcgFileError, match=r"record r3, leads: got the channels 'a', 'b', expected names of leads"):
        read_ecg(write_wfdb(tmp_path, "r3", heart()[:2], names=["a", "b"]))
