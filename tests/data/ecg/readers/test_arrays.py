"""Bare arrays and tables: what is stated, what is taken, what is refused; ages and sexes as written."""

import zipfile

import numpy as np
import pytest
import scipy.io
from ecg_files import EIGHT, heart, rows_of, truth, write_edf, write_muse

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.readers.demographics import age_in_years, sex_of
from medjax.data.ecg.readers.matlab import read_variables
from medjax.data.ecg.readers.stated import Stated
from medjax.data.ecg.record import LONGEST_SAMPLES, EcgFileError

HALF = Stated(500.0, "mV", LEADS)


def save(folder, kind, array, **more):
    path = folder / f"a.{kind}"
    if kind == "mat":
        scipy.io.savemat(path, {"val": array, **more})
    elif kind == "npz":
        np.savez(path, signal=array, **more)
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("kind", ["mat", "npy", "npz"])
@pytest.mark.parametrize("turned", [False, True])
def test_stated_rate_unit_and_leads(kind, turned, tmp_path):
    path = save(tmp_path, kind, truth().T if turned else truth())
    (record,) = read_ecg(path, HALF)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert (record.sampling_rate_hz, record.notes) == (500.0, ())


@pytest.mark.parametrize("kind", ["mat", "npz"])
def test_what_the_file_states_goes_before_what_the_user_does(kind, tmp_path):
    more = {"fs": 250, "unit": "uV", "leads": np.array(LEADS[::-1])}
    (record,) = read_ecg(save(tmp_path, kind, truth()[::-1] * 1000, **more), HALF)
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert record.sampling_rate_hz == 250.0


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "i4", "i2", "u2", "u1", "i8"])
def test_matlab_variables_equal_what_scipy_wrote(version, packed, kind, tmp_path):
    if version == "4" and kind == "i8":
        kind = "f8"
    array = np.arange(36).reshape(3, 12).astype(kind)
    said = {"val": array, "one": np.array([[7.5]]), "name": "microvolt", "names": np.array(["I", "aVR"])}
    if version == "5":
        said |= {"cells": np.array(["V1", "Lead II"], object), "struct": {"a": 1}, "odd": np.array([[1 + 2j]])}
    scipy.io.savemat(tmp_path / "a.mat", said, format=version, do_compression=packed and version == "5")
    found = read_variables(tmp_path / "a.mat")
    np.testing.assert_array_equal(found["val"], array)
    assert found["one"].item() == 7.5
    assert [*found["name"], *found["names"]] == ["microvolt", "I", "aVR"]
    assert list(found.get("cells", ["V1", "Lead II"])) == ["V1", "Lead II"]
    assert {"struct", "odd"}.isdisjoint(found)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_a_unit_that_is_not_stated_is_the_one_that_fits_and_noted(factor, tmp_path):
    (record,) = read_ecg(save(tmp_path, "npy", truth()[[LEADS.index(lead) for lead in EIGHT]] * factor), Stated(500.0))
    np.testing.assert_allclose(record.signal, truth(), atol=1e-6)
    assert record.notes[0] == "order of leads not stated: taken as I II V1 V2 V3 V4 V5 V6"
    assert record.notes[1].startswith(f"unit not stated: taken as {'mV' if factor == 1 else 'uV'}, for ")


def test_a_unit_that_nothing_fits_is_asked_for(tmp_path):
    with pytest.raises(
        EcgFileError, match=r"record a, unit: the file states none, and .* write it into ecg_files\.csv"
    ):
        read_ecg(save(tmp_path, "npy", truth() * 1e9), Stated(500.0))


def test_a_missing_rate_is_asked_for_and_taken_from_the_table(tmp_path):
    path = save(tmp_path, "npy", truth())
    with pytest.raises(EcgFileError, match=r"record a, sampling rate: the file states none(.|\n)*a\.npy,500,mV"):
        read_ecg(path)
    table = tmp_path / "ecg_files.csv"
    table.write_text("file,sampling_rate_hz,unit,leads,patient,age,sex\na.npy,400,uV,,P1,>89,F\n*,300,,,,,\n")
    (record,) = read_ecg(path)
    assert (record.sampling_rate_hz, record.age_years, record.sex, record.patient) == (400.0, 90.0, "female", "P1")
    np.testing.assert_allclose(record.signal, truth() / 1000, atol=1e-6)
    assert read_ecg(path, Stated(unit="mV"))[0].sampling_rate_hz == 400.0
    np.save(tmp_path / "b.npy", truth())
    assert read_ecg(tmp_path / "b.npy")[0].sampling_rate_hz == 300.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,rate\na,1\n", r"got the columns \['name', 'rate'\], expected file and any of sampling_rate_hz"),
        ("file,sampling_rate_hz\na.npy,fast\n", "record a.npy: line 2: could not convert string to float: 'fast'"),
        ("file,unit\na.npy,kg\n", "record a.npy: line 2: unit: got 'kg', expected a voltage"),
        ("file,leads\na.npy,I II W\n", "record a.npy: line 2: leads: got 'W', expected names"),
        ("file\na.npy\na.npy\n", "line 3: got 'a.npy' as file, expected a name, and each once"),
    ],
)
def test_tables_in_error(text, message, tmp_path):
    path = save(tmp_path, "npy", truth())
    (tmp_path / "ecg_files.csv").write_text(text)
    with pytest.raises(EcgFileError, match=message):
        read_ecg(path)


def test_patient_age_and_sex_fill_gaps_of_any_format_and_replace_nothing(tmp_path):
    stated = Stated(patient="Q", age="51", sex="M")
    (muse,) = read_ecg(write_muse(tmp_path / "a.xml", rows_of(LEADS), age=""), stated)
    assert (muse.patient, muse.age_years, muse.sex) == ("P17", 51.0, "female")


def test_the_leads_of_an_edf_without_names(tmp_path):
    path = write_edf(tmp_path / "a.edf", rows_of(LEADS), labels=[f"chan {n}" for n in range(12)])
    with pytest.raises(
        EcgFileError, match=r"record a, leads: got the channels 'chan 0', .* and 4 more, expected names"
    ):
        read_ecg(path)
    np.testing.assert_allclose(read_ecg(path, Stated(leads=LEADS))[0].signal, truth(), atol=1e-6)
    single = write_edf(tmp_path / "b.edf", rows_of(["II"]), labels=["ECG"])
    assert (
        read_ecg(single)[0].notes[0]
        == "the only channel is called 'ECG' and no lead: taken as I, the usual single lead"
    )


def test_pickles_are_refused(tmp_path):
    objects = np.array([{"a": 1}, None], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", signal=truth(), leads=objects)
    for name in ("a.npy", "b.npz"):
        with pytest.raises(EcgFileError, match=r"cannot be read as NumPy without objects: .*save numbers only"):
            read_ecg(tmp_path / name, HALF)


def test_sizes_are_checked_before_samples_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("signal.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (12, 10**12)})
    with pytest.raises(EcgFileError, match="got 12 channels of 1000000000000 samples, expected at most 16 of 3600000"):
        read_ecg(tmp_path / "a.npz", HALF)
    np.lib.format.open_memmap(tmp_path / "b.npy", "w+", np.int8, (12, LONGEST_SAMPLES + 1))
    with pytest.raises(EcgFileError, match=f"got 12 channels of {LONGEST_SAMPLES + 1} samples"):
        read_ecg(tmp_path / "b.npy", HALF)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), r"got the shape \(3, 4, 5\), expected \[leads, samples\]"),
        (np.zeros((5, 400)), "got 5 rows and 0 names of leads"),
        (np.array([["a", "b"], ["c", "d"]]), r"expected numbers \[leads, samples\]"),
    ],
)
def test_arrays_of_another_kind(array, message, tmp_path):
    with pytest.raises(EcgFileError, match=message):
        read_ecg(save(tmp_path, "npy", array), Stated(500.0, "mV"))


def test_matlab_7_3_and_other_arrays(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    with pytest.raises(
        EcgFileError, match=r"got a MATLAB 7\.3 file, expected version 5; save it again with the option -v7"
    ):
        read_ecg(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"p": np.zeros((2, 3)), "q": np.zeros((3, 4))})
    with pytest.raises(
        EcgFileError, match=r"record b, signal: got the arrays p, q, expected one \[leads, samples\] called"
    ):
        read_ecg(tmp_path / "b.mat")


def test_nan_leads_of_an_array_are_missing(tmp_path):
    array = truth()
    array[6:9], array[9, :7] = np.nan, np.inf
    (record,) = read_ecg(save(tmp_path, "npy", array), HALF)
    assert record.status[6:10] == ("missing", "missing", "missing", "measured")
    assert "7 infinite samples count as not measured" in record.notes
    assert np.isnan(record.signal[9, :7]).all()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_times_units_and_comments(delimiter, tmp_path):
    microvolts = heart()[[1, 0, 6]] * 5
    lines = ["# recorded: at home", delimiter.join(["time_ms", "Lead II (uV)", "I (uV)", "v1 (uV)"])]
    lines += [delimiter.join(map(str, [at * 4, *row])) for at, row in enumerate(microvolts.T)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    (record,) = read_ecg(tmp_path / "a.csv")
    assert record.sampling_rate_hz == pytest.approx(250.0, rel=1e-12)
    np.testing.assert_allclose(record.signal[:7], truth()[:7], atol=1e-6)
    assert record.status[7:] == ("missing",) * 5


def test_csv_that_states_rate_and_unit_above_its_header_and_has_gaps(tmp_path):
    (tmp_path / "a.csv").write_text("# sampling_rate_hz: 128\n# unit: mV\nI,II\n0.5,1\n,2\nNaN,1.5\n1,3\n")
    (record,) = read_ecg(tmp_path / "a.csv")
    assert record.sampling_rate_hz == 128.0
    np.testing.assert_allclose(record.signal[0], [0.5, np.nan, np.nan, 1])
    np.testing.assert_allclose(record.signal[1], [1, 2, 1.5, 3])
    np.testing.assert_allclose(record.signal[2], [0.5, np.nan, np.nan, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I,II\n1,2\n1,two\n", r"record a, line 3, column 'II': got 'two', expected a number"),
        ("I,II\n1,2\n1\n", r"record a: line 3 has 1 cells, expected 2\."),
        ("id,age\n1,2\n", r"record a, header: got the header 'id,age', expected lead names as I,II,V1"),
        ("I,II\n", "got 12 channels of 0 samples"),
        ("time,I\n0,1\n0.004,1\n0.002,2\n", "record a, time: times do not rise evenly"),
        ("I (mV),II (uV)\n1,2\n1,3\n", "record a, unit: got the units mV, uV, expected one"),
        ("I,II\n1,2\n2,3\n", "record a, sampling rate: the file states none"),
    ],
)
def test_csv_in_error(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(EcgFileError, match=message):
        read_ecg(tmp_path / "a.csv", None if "sampling" in message else Stated(500.0))


@pytest.mark.parametrize(
    ("text", "age", "noted"),
    [
        ("51", 51.0, False),
        (" 51.5 ", 51.5, False),
        ("042Y", 42.0, False),
        ("006M", 0.5, False),
        ("64 YEARS", 64.0, False),
        (">89", 90.0, True),
        ("> 89", 90.0, True),
        (">=90", 90.0, True),
        ("90+", 90.0, True),
        ("300", 90.0, True),
        ("", None, False),
        ("NaN", None, True),
        ("unknown", None, True),
        ("-1", None, True),
        ("131", None, True),
        ("<18", None, True),
        ("fifty", None, True),
        ("1e9", None, True),
        ("0", 0.0, False),
        ("000Y", None, True),
        ("003D", 3 / 365.25, False),
    ],
)
def test_ages(text, age, noted):
    value, note = age_in_years(text)
    assert value == age
    assert (note is not None) == noted
    assert note is None or text.strip() in note


@pytest.mark.parametrize(
    ("text", "sex", "noted"),
    [
        ("F", "female", False),
        ("Male", "male", False),
        ("女", "female", False),
        ("", None, False),
        ("UNDEFINED", None, False),
        ("2", None, True),
        ("x", None, True),
    ],
)
def test_sexes(text, sex, noted):
    assert (sex_of(text)[0], sex_of(text)[1] is not None) == (sex, noted)


@pytest.mark.parametrize(("name", "array"), [("fs", np.zeros(1001)), ("unit", np.array("u" * 30_000))])
@pytest.mark.parametrize("kind", ["mat", "npz"])
def test_arrays_beside_the_signal_are_small(name, array, kind, tmp_path):
    with pytest.raises(
        EcgFileError, match=rf"record a, {name}: got .*, expected at most 1,000 short values; rename it"
    ):
        read_ecg(save(tmp_path, kind, truth(), **{name: array}), HALF)


def test_texts_and_objects_are_told_by_their_headers(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("signal.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<U1000", "fortran_order": False, "shape": (12, 3600000)}
        )
    with pytest.raises(EcgFileError, match=r"signal: got <U1000 \(12, 3600000\), expected numbers \[leads, samples\]"):
        read_ecg(tmp_path / "a.npz", HALF)
