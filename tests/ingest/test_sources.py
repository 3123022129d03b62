"""What --source stands for: folders, lists with overrides, single files."""

import os

import numpy as np
import pytest
from made_exports import export, write_wfdb

from medjax.data.ecg.readers import read_ecg
from medjax.ingest.sources import Source, find_sources


def test_a_folder(tmp_path):
    found = find_sources(export(tmp_path / "export"))
    assert [source.name for source in found.files] == [
        *("bad/B1.hea", "bad/B2.hea", "bad/B3.xml", "east/E1.hea", "east/E2.hea", "east/E3.hea"),
        *("west/E1.hea", "west/W2.hea", "west/W3.hea"),
    ]
    assert found.root == tmp_path / "export"


def test_the_digest_sees_a_changed_file(tmp_path):
    folder = export(tmp_path / "export")
    before = find_sources(folder).digest
    assert find_sources(folder).digest == before
    os.utime(folder / "east" / "E2.hea", ns=(0, 0))
    assert find_sources(folder).digest != before


def test_one_file(tmp_path):
    path = write_wfdb(tmp_path, "E1", 1)
    assert find_sources(path).files == (Source(path, "E1.hea"),)


def test_a_list_overrides_what_the_file_says(tmp_path):
    write_wfdb(tmp_path / "export", "E1", 1)
    (tmp_path / "list.csv").write_text(
        "file,Patient_ID,age,sex,device,time,sampling_rate,id\n"
        "export/E1.hea,P1,>89,男,MAC,2024-05-01T09:30:00,250,first\n"
        f"{tmp_path}/export/ghost.hea,,,,,,,\n"
    )
    listed, ghost = find_sources(tmp_path / "list.csv").files
    record = listed.override(read_ecg(listed.path)[0])
    assert (record.id, record.patient, record.age_years, record.sex) == ("first", "P1", 90.0, "male")
    assert (record.device, record.time, record.sampling_rate_hz) == ("MAC", "2024-05-01T09:30:00", 250.0)
    assert record.notes == (
        "age: got '>89', taken as 90",
        "sampling rate: got 500 Hz, taken as 250 Hz as listed",
    )
    assert (listed.name, ghost.name, dict(ghost.overrides)) == ("export/E1.hea", "export/ghost.hea", {})
    untouched = ghost.override(read_ecg(listed.path)[0])
    assert (untouched.age_years, untouched.sex, untouched.patient) == (51.0, "female", None)


def test_a_listed_rate_moves_the_mains_and_has_bounds(tmp_path):
    time = np.arange(5000) / 500
    hum = np.random.default_rng(0).normal(0, 0.005, (12, 5000)) + 0.05 * np.sin(2 * np.pi * 50 * time)
    path = write_wfdb(tmp_path, "E1", 1, signal=hum, rate=250)  # the header says half of the true rate
    (record,) = read_ecg(path)
    assert record.mains_hz is None
    told = Source(path, "E1.hea", {"sampling_rate_hz": "500"}).override(record)
    assert (told.sampling_rate_hz, told.mains_hz) == (500.0, 50)
    for rate in ("1e9", "3"):
        with pytest.raises(ValueError, match=r"sampling_rate_hz: got .* Hz, expected 25 to 50000"):
            Source(path, "E1.hea", {"sampling_rate_hz": rate}).override(record)


def test_long_texts_of_a_list_are_cut_and_kept_apart(tmp_path):
    (record,) = read_ecg(write_wfdb(tmp_path, "E1", 1))
    first, second = (Source(tmp_path, "E1", {"patient": "P" * 5000 + end}).override(record) for end in "ab")
    assert len(first.patient) == len(second.patient) == 200
    assert first.patient != second.patient
    assert first.notes[-1] == "patient: got 5,001 characters, cut to 200"


def test_files_outside_the_folder_of_the_list_are_named_below_what_holds_all(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text(f"path\n../export/a/E1.hea\n{tmp_path}/export/b/E2.hea\n")
    found = find_sources(tmp_path / "lists" / "list.csv")
    assert (found.root, [source.name for source in found.files]) == (tmp_path / "export", ["a/E1.hea", "b/E2.hea"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,AF\na.hea,1\n", r"line 1: got the column 'af', expected only path, .*; labels belong into --labels"),
        ("path,age\n,5\n", "line 2, path: got nothing, expected a file"),
        ("path\na.hea\n./a.hea\n", r"line 3: got a\.hea a second time, expected each file once"),
        ("path,sampling_rate_hz\na.hea,fast\n", "line 2: could not convert string to float: 'fast'"),
        (
            "path,sampling_rate_hz\na.hea,-5\n",
            r"line 2: sampling_rate_hz: got -5\.0, expected samples a second above 0",
        ),
        ("path,unit\na.hea,kg\n", "line 2: unit: got 'kg', expected a voltage"),
        ("path,leads\na.hea,I Q\n", "line 2: leads: got 'Q', expected names as I, aVR or V1"),
        ("path\n", "got a list without a file, expected at least one line"),
    ],
)
def test_wrong_lists_name_the_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_sources(tmp_path / "list.csv")


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file, expected ECG files; correct --source"):
        find_sources(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got a folder without any ECG file, expected WFDB, DICOM"):
        find_sources(tmp_path / "empty")
