"""DICOM ECG: coding schemes, units, groups, and files that hold something else."""

import numpy as np
import pytest
from ecg_files import heart, truth, write_dicom

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers import dicom, read_ecg
from medjax.data.ecg.record import EcgFileError


@pytest.mark.parametrize("scheme", ["SCPECG", "MDC"])
@pytest.mark.parametrize(("unit", "sensitivity"), [("uV", 5), ("mV", 0.005), ("V", 5e-6)])
def test_schemes_and_units(scheme, unit, sensitivity, tmp_path):
    order = [7, 3, 0, 11, 5, 1, 2, 10, 4, 8, 6, 9]
    path = write_dicom(
        tmp_path / "a.dcm",
        heart()[order],
        leads=[LEADS[row] for row in order],
        scheme=scheme,
        unit=unit,
        sensitivity=sensitivity,
        PatientAge="006M",
        PatientSex="M",
        PatientID="P17",
        Manufacturer="Maker",
        ManufacturerModelName="Cart 2",
        AcquisitionDateTime="20210331081530.123",
    )
    (record,) = read_ecg(path)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert (record.age_years, record.sex, record.patient) == (0.5, "male", "P17")
    assert (record.device, record.time, record.notes) == ("Maker Cart 2", "2021-03-31T08:15:30", ())


def test_age_from_the_birth_date_the_day_before_and_on_the_birthday(tmp_path):
    for day, age in (("20210330", 63.0), ("20210331", 64.0)):
        facts = {"PatientBirthDate": "19570331", "ContentDate": day, "ContentTime": "081530"}
        assert read_ecg(write_dicom(tmp_path / "a.dcm", heart(), **facts))[0].age_years == age


def test_groups_one_after_the_other_share_a_time_line(tmp_path):
    rows = heart()
    groups = [(LEADS[3 * g : 3 * g + 3], rows[3 * g : 3 * g + 3, 250 * g : 250 * g + 250], 500 * g) for g in range(4)]
    (record,) = read_ecg(write_dicom(tmp_path / "a.dcm", None, groups=groups))
    expected = np.full((12, 1000), np.nan)
    for g in range(4):
        expected[3 * g : 3 * g + 3, 250 * g : 250 * g + 250] = truth()[3 * g : 3 * g + 3, 250 * g : 250 * g + 250]
    np.testing.assert_allclose(record.signal, expected, atol=1e-6)
    assert record.status == ("measured",) * 12
    assert "V1: 750 of 1000 samples were not measured" in record.notes


def test_a_second_recording_of_the_same_leads_is_a_second_record(tmp_path):
    groups = [(LEADS, heart()[:, :500], 0), (LEADS, heart()[:, 500:], 0)]
    first, second = read_ecg(write_dicom(tmp_path / "a.dcm", None, groups=groups))
    assert (first.id, second.id) == ("a", "a_2")
    np.testing.assert_allclose(np.hstack([first.signal, second.signal]), truth(), atol=1e-6)


def test_padding_is_not_measured(tmp_path):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", np.where(np.arange(1000) < 900, heart(), -32768).astype(np.int16))
    data = pydicom.dcmread(path)
    data.WaveformSequence[1].add_new("WaveformPaddingValue", "OW", b"\x00\x80")
    data.save_as(path)
    (record,) = read_ecg(path)
    np.testing.assert_allclose(record.signal[:, :900], truth()[:, :900], atol=1e-6)
    assert np.isnan(record.signal[:, 900:]).all()


def test_without_a_waveform(tmp_path, shared_data):
    with pytest.raises(
        EcgFileError, match=r"a\.dcm, record a, WaveformSequence: got DICOM without a waveform \(12-lead"
    ):
        read_ecg(write_dicom(tmp_path / "a.dcm", None))
    with pytest.raises(
        EcgFileError, match=r"without a waveform \(Ultrasound Multi-frame Image Storage\), expected an ECG"
    ):
        read_ecg(shared_data / "dicom" / "examples_ybr_color.dcm")


def test_only_a_median_beat(tmp_path):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", heart())
    data = pydicom.dcmread(path)
    del data.WaveformSequence[1]
    data.save_as(path)
    with pytest.raises(EcgFileError, match="got median beats only, expected the rhythm"):
        read_ecg(path)


def test_units_are_never_guessed(tmp_path):
    with pytest.raises(EcgFileError, match="channel I: got samples without sensitivity or its unit, expected both"):
        read_ecg(write_dicom(tmp_path / "a.dcm", heart(), sensitivity=None))
    with pytest.raises(EcgFileError, match=r"channel I: got the unit 'mm\[Hg\]', expected a voltage"):
        read_ecg(write_dicom(tmp_path / "a.dcm", heart(), unit="mm[Hg]"))


def test_cut_short_and_too_long(tmp_path):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", heart())
    data = pydicom.dcmread(path)
    data.WaveformSequence[1].WaveformData = data.WaveformSequence[1].WaveformData[:-100]
    data.save_as(path)
    with pytest.raises(
        EcgFileError, match="WaveformData: got 23900 bytes, expected 24000 for 12 channels of 1000 samples"
    ):
        read_ecg(path)
    data.WaveformSequence[1].NumberOfWaveformSamples = 4_000_000_000
    data.save_as(path)
    with pytest.raises(EcgFileError, match="got 12 channels of 4000000000 samples, expected at most 16 of 3600000"):
        read_ecg(path)


def test_a_deflated_file_is_read_unless_it_grows_too_large(tmp_path, monkeypatch):
    import pydicom

    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", heart()))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "b.dcm")
    np.testing.assert_allclose(read_ecg(tmp_path / "b.dcm")[0].signal, truth(), atol=1e-6)
    data.add_new(0x00091001, "OB", b"\0" * 3_000_000)
    data.save_as(tmp_path / "c.dcm")
    assert (tmp_path / "c.dcm").stat().st_size < 50_000
    monkeypatch.setattr(dicom, "_LARGEST_BYTES", 1_000_000)
    with pytest.raises(EcgFileError, match=r"record c: inflates to more than 1,000,000 bytes, expected a recording"):
        read_ecg(tmp_path / "c.dcm")
    assert len(read_ecg(tmp_path / "b.dcm")) == 1


def test_facts_that_cannot_be_read_leave_the_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "_datetime", lambda text: 1 / 0)
    (record,) = read_ecg(write_dicom(tmp_path / "a.dcm", heart(), PatientID="P1", PatientSex="F", PatientAge="064Y"))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert (record.patient, record.sex, record.time, record.age_years) == ("P1", "female", None, 64.0)
    assert "time: cannot be read (ZeroDivisionError: division by zero), left unknown" in record.notes


def test_groups_without_an_offset_are_noted(tmp_path):
    groups = [(LEADS[at : at + 6], heart()[at : at + 6], 0) for at in (0, 6)]
    (record,) = read_ecg(write_dicom(tmp_path / "a.dcm", None, groups=groups))
    assert record.notes == ("groups of leads without a time offset: taken as recorded at once",)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
