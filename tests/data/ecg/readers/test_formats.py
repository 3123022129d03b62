"""Every format holds the same heart and gives the same leads in mV; the real samples agree with their libraries."""

import csv
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.io
from ecg_files import (
    EIGHT,
    heart,
    rows_of,
    truth,
    write_aecg,
    write_dicom,
    write_edf,
    write_ishne,
    write_mfer,
    write_mortara,
    write_muse,
    write_schiller,
    write_scp,
    write_sierra,
    write_wfdb,
)

from medjax.data.ecg.leads import LEADS, einthoven_error, goldberger_error
from medjax.data.ecg.readers import find_ecgs, read_ecg, survey
from medjax.data.ecg.readers.stated import Stated
from medjax.data.ecg.record import EcgFileError

WRITERS = {
    "MUSE XML": (write_muse, ".xml"),
    "HL7 aECG": (write_aecg, ".xml"),
    "Philips Sierra XML": (write_sierra, ".xml"),
    "Mortara XML": (write_mortara, ".xml"),
    "Schiller XML": (write_schiller, ".xml"),
    "MFER": (write_mfer, ".mwf"),
    "SCP-ECG": (write_scp, ".scp"),
    "ISHNE": (write_ishne, ".ecg"),
    "EDF": (write_edf, ".edf"),
}
CINC = "ecg/cinc2021_sample"


@pytest.mark.parametrize("name", WRITERS)
def test_leads_in_mv_and_who_and_when(name, tmp_path):
    write, suffix = WRITERS[name]
    (record,) = read_ecg(write(tmp_path / f"r1{suffix}", rows_of(LEADS)))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert (record.format, record.id, record.sampling_rate_hz) == (name, "r1", 500.0)
    assert (record.status, record.notes) == (("measured",) * 12, ())
    assert (record.sex, record.patient) == ("female", "P17")
    if name != "EDF":  # its writer stamps the present time and knows no age
        assert (record.age_years, record.time) == (64.0, "2021-03-31T08:15:30")


@pytest.mark.parametrize("name", WRITERS)
def test_other_order_and_eight_leads(name, tmp_path):
    write, suffix = WRITERS[name]
    (record,) = read_ecg(write(tmp_path / f"r1{suffix}", rows_of(reversed(EIGHT))))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert [lead for lead, state in zip(LEADS, record.status, strict=True) if state == "derived"] == [
        "III",
        "aVR",
        "aVL",
        "aVF",
    ]
    assert record.notes == ("leads III aVR aVL aVF: derived from I and II",)


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"EDF"}))
@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_truncated_files_are_refused_by_name(name, keep, tmp_path):
    write, suffix = WRITERS[name]
    whole = write(tmp_path / f"r1{suffix}", rows_of(LEADS)).read_bytes()
    (tmp_path / f"r1{suffix}").write_bytes(whole[: int(len(whole) * keep)])
    if name == "ISHNE":
        (record,) = read_ecg(tmp_path / f"r1{suffix}")  # it states no length that writers keep to
        assert record.samples < 1000
        return
    with pytest.raises(EcgFileError, match=rf"^{tmp_path}/r1{suffix}"):
        read_ecg(tmp_path / f"r1{suffix}")


@pytest.mark.parametrize("name", WRITERS)
def test_noise_after_the_first_bytes_is_refused_by_name(name, tmp_path):
    write, suffix = WRITERS[name]
    path = write(tmp_path / f"r1{suffix}", rows_of(LEADS))
    noise = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
    path.write_bytes(path.read_bytes()[:40] + noise)
    with pytest.raises(EcgFileError, match=rf"^{tmp_path}/r1{suffix}"):
        read_ecg(path)


@pytest.mark.parametrize("suffix", [".xml", ".dcm", ".scp", ".mwf", ".edf", ".ecg", ".mat", ".npy", ".csv", ".bin", ""])
@pytest.mark.parametrize(
    "content", [b"hello world\n", b"\x00" * 4000, b"<html><body>404</body></html>", bytes(range(256))]
)
def test_a_file_that_is_no_ecg_gets_a_sentence(suffix, content, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(EcgFileError) as caught:
        read_ecg(tmp_path / f"x{suffix}")
    assert str(caught.value).startswith(f"{tmp_path}/x{suffix}")
    assert str(caught.value).endswith((".", "500,mV"))


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path):
    write_dicom(tmp_path / "a.dcm", heart()).rename(tmp_path / "a.xml")
    write_scp(tmp_path / "b.scp", rows_of(LEADS)).rename(tmp_path / "b.dat")
    write_muse(tmp_path / "c.xml", rows_of(LEADS)).rename(tmp_path / "c.txt")
    formats = [read_ecg(tmp_path / name)[0].format for name in ("a.xml", "b.dat", "c.txt")]
    assert formats == ["DICOM", "SCP-ECG", "MUSE XML"]


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.xml").touch()
    for path, words in (("none.xml", "nothing there"), (".", "a folder"), ("empty.xml", "an empty file")):
        with pytest.raises(EcgFileError, match=f"got {words}"):
            read_ecg(tmp_path / path)


def test_find_lists_each_record_once_and_no_tables(tmp_path):
    folder = tmp_path / "sub"
    folder.mkdir()
    write_wfdb(folder, "w1", heart())
    write_wfdb(folder, "w2", heart(), mat=True)
    write_dicom(folder / "d1", heart())  # DICOM often has no suffix
    write_muse(tmp_path / "m1.xml", rows_of(LEADS))
    np.save(tmp_path / "signal.npy", truth())
    np.save(tmp_path / "labels.npy", np.zeros((300, 20)))
    (tmp_path / "leads.csv").write_text("time,I,II\n0,1,2\n")
    (tmp_path / "labels.csv").write_text("id,age,lvsd\n1,2,3\n1,2,3\n")
    (tmp_path / "ecg_files.csv").write_text("file\n")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".hidden.xml").write_text("<a/>")
    found = [path.relative_to(tmp_path).as_posix() for path in find_ecgs(tmp_path)]
    assert survey(tmp_path).passed_over == {".npy": 1, ".csv": 1, ".txt": 1}
    assert found == ["leads.csv", "m1.xml", "signal.npy", "sub/d1", "sub/w1.hea", "sub/w2.hea"]
    with pytest.raises(FileNotFoundError, match="got no folder"):
        list(find_ecgs(tmp_path / "no"))


def test_a_missing_package_is_no_fault_of_the_file(tmp_path, monkeypatch):
    write_dicom(tmp_path / "a.dcm", heart())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"reading it needs pydicom; pip install 'medjax\[ecg\]'"):
        read_ecg(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", [*WRITERS, "DICOM", "WFDB", "MATLAB", "NumPy"])
def test_damaged_bytes_give_a_record_or_an_error_and_nothing_else(name, tmp_path):
    if name in WRITERS:
        path = WRITERS[name][0](tmp_path / f"a{WRITERS[name][1]}", rows_of(LEADS, 200))
    elif name == "DICOM":
        path = write_dicom(tmp_path / "a.dcm", heart(1100))
    elif name == "WFDB":
        path = write_wfdb(tmp_path, "a", heart(200))
    elif name == "MATLAB":
        scipy.io.savemat(path := tmp_path / "a.mat", {"val": heart(200), "fs": 500})
    else:
        np.savez(path := tmp_path / "a.npz", signal=heart(200), fs=500)
    rng, whole = np.random.default_rng(1), path.read_bytes()
    for trial in range(40):
        damaged = bytearray(whole)
        reach = min(len(damaged), int(rng.choice([64, 300, 2000, len(damaged)])))
        for at in rng.integers(0, reach, rng.integers(1, 5)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(damaged))] if trial % 5 == 0 else damaged)
        try:
            outcome = [record.source for record in read_ecg(path)]
        except EcgFileError as error:
            outcome = [str(error)]
        assert all(words.startswith(str(path)) for words in outcome)


# ---- real files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["ludb/data", *(f"cinc2021_sample/{name}" for name in ("chapman_ningbo", "cpsc"))])
def test_real_wfdb_equals_wfdb(folder, shared_data):
    import wfdb

    for path in sorted((shared_data / "ecg" / folder).glob("*.hea"))[::8]:
        (record,) = read_ecg(path)
        raw = wfdb.rdrecord(str(path.with_suffix("")), physical="ludb" not in folder)
        rows = [[name.lower() for name in raw.sig_name].index(lead.lower()) for lead in LEADS]
        expected = (raw.d_signal / 1000 if "ludb" in folder else raw.p_signal).T[rows]
        expected[(expected == expected[:, :1]).all(axis=1)] = np.nan
        np.testing.assert_allclose(record.signal, expected, atol=1e-6, err_msg=path.name)
        assert any("wrong gain" in note for note in record.notes) == ("ludb" in folder)


@pytest.mark.slow
def test_all_real_files_are_read(shared_data):
    records = [record for path in find_ecgs(shared_data / "ecg") for record in read_ecg(path)]
    assert Counter(record.format for record in records) == {
        "WFDB": 344,
        "MATLAB": 10,
        "DICOM": 3,
        "EDF": 1,
        "MUSE XML": 1,
        "Schiller XML": 1,
    }
    errors = [einthoven_error(record.signal) for record in records if record.format == "WFDB"]
    assert np.nanmax(errors) <= 0.0031
    assert sum("wrong gain" in " ".join(record.notes) for record in records) == 205


def test_ludb_ages_sexes_and_diagnoses_equal_its_table(shared_data):
    folder = shared_data / "ecg" / "ludb"
    with next(folder.glob("*.csv")).open(encoding="utf-8", newline="") as file:
        rows = {row["ID"].strip(): row for row in csv.DictReader(file)}
    for name in ("1", "34", "107", "200"):
        (record,) = read_ecg(folder / "data" / f"{name}.hea")
        age = rows[name]["Age"].strip()
        assert record.age_years == (90.0 if age == ">89" else float(age))
        assert record.sex == {"M": "male", "F": "female"}[rows[name]["Sex"].strip()]
        assert rows[name]["Rhythms"].strip().rstrip(".") in record.codes[0]


@pytest.mark.parametrize(
    "name", ["georgia/E00015", "georgia/E00018", "georgia/E00793", "ptbxl/HR00599", "ptbxl/HR20715"]
)
def test_wrong_gains_of_the_challenge_are_corrected(name, shared_data):
    import wfdb

    path = shared_data / CINC / f"{name}.hea"
    (record,) = read_ecg(path)
    raw = wfdb.rdrecord(str(path.with_suffix("")), physical=False)
    np.testing.assert_allclose(record.signal, raw.d_signal.T / 1000, atol=1e-6)
    assert record.notes[0].startswith(f"wrong gain in the header ({raw.adc_gain[0]:g} per mV)")


@pytest.mark.parametrize(
    ("name", "count"), [("JS20004", 3), ("JS20008", 3), ("JS45551", 3), ("JS45544", 5), ("JS45542", 6)]
)
def test_flat_leads_of_chapman_are_marked(name, count, shared_data):
    (record,) = read_ecg(shared_data / CINC / "chapman_ningbo" / f"{name}.hea")
    assert record.status.count("flat") == count == int((~record.usable).sum())
    assert np.isnan(record.signal[~record.usable]).all()


@pytest.mark.parametrize("name", ["waveform_ecg", "cardio_sample", "synthetic_muse"])
def test_real_dicom_equals_pydicom_and_the_laws(name, shared_data):
    import pydicom

    path = shared_data / "ecg" / "format_samples" / f"{name}.dcm"
    (record,) = read_ecg(path)
    microvolts = pydicom.dcmread(path).waveform_array(0).T
    np.testing.assert_allclose(record.signal, microvolts / 1000, atol=1e-6)
    assert einthoven_error(record.signal) < 0.0051
    assert goldberger_error(record.signal) < 0.0101
    assert record.sampling_rate_hz == {"waveform_ecg": 1000.0}.get(name, 500.0)


def test_real_xml_and_edf(shared_data):
    folder = shared_data / "ecg" / "format_samples"
    (muse,), (dicom,) = (read_ecg(folder / f"synthetic_muse{suffix}") for suffix in (".xml", ".dcm"))
    np.testing.assert_allclose(muse.signal, dicom.signal, atol=0.0025)  # half a step of 4.88 uV in the derived leads
    assert "CRC32 mismatch" in muse.notes[0]
    assert "15 more of this kind" in muse.notes[0]
    (schiller,) = read_ecg(folder / "cardio_sample.xml")
    assert (schiller.samples, schiller.sampling_rate_hz, schiller.time) == (5000, 500.0, None)
    assert einthoven_error(schiller.signal) < 1e-6
    assert goldberger_error(schiller.signal) < 0.00051
    (edf,) = read_ecg(folder / "cardio_sample.edf")
    assert (edf.sampling_rate_hz, edf.samples, edf.status[0], edf.status.count("missing")) == (
        300,
        12000,
        "measured",
        11,
    )
    np.testing.assert_allclose(edf.signal[0, :5], [-0.127, -0.162, -0.197, -0.229, -0.245], atol=1e-6)


def test_real_code15_needs_no_table_but_takes_one(shared_data):
    path = shared_data / "ecg" / "code15_ecgfm" / "code_15_358121.mat"
    (record,) = read_ecg(path, Stated(unit="mV", leads=LEADS, patient="1295924", age="54", sex="M"))
    assert (record.sampling_rate_hz, record.samples) == (400.0, 2934)
    assert (record.age_years, record.sex, record.patient) == (54.0, "male", "1295924")
    assert record.notes[0].startswith("I + III differs from II by up to 0.246 mV")
    assert "unit not stated: taken as mV" in " ".join(read_ecg(path)[0].notes)


def test_an_edf_header_that_cannot_be_read_leaves_the_trace(tmp_path, monkeypatch):
    path = write_edf(tmp_path / "a.edf", rows_of(LEADS))
    monkeypatch.setattr("pyedflib.EdfReader.getHeader", lambda self: {})
    (record,) = read_ecg(path)
    assert record.status == ("measured",) * 12
    assert record.notes == ("header: cannot be read (KeyError: 'startdate'), left unknown",)
