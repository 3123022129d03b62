"""Whom a training has seen: what is written, what is found again in other data, and what is damaged."""

import hashlib
import json

import numpy as np
import pytest

from medjax.data.ecg.seen import Seen, hash_of


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def index_of(rows):
    """rows: patient, waveform, recording."""
    columns = np.array(rows).T
    return dict(zip(("patient", "waveform", "recording"), columns, strict=True))


TRAINED = index_of([("ann", "x", "x"), ("ann", "y", "x"), ("", "z", "z"), ("bob", "w", "w")])


def test_hashes_of_patients_and_of_every_copy_of_a_recording(tmp_path):
    seen = Seen.of(TRAINED, np.array([0, 1, 2]))
    seen.write(tmp_path)
    assert json.loads((tmp_path / "seen.json").read_text()) == {
        "patients": sorted([sha("ann"), sha("recording:z")]),
        "recordings": sorted([sha("x"), sha("y"), sha("z")]),
    }
    assert Seen.read(tmp_path) == seen
    assert hash_of("ann") == sha("ann")
    assert [file.name for file in tmp_path.iterdir()] == ["seen.json"]
    assert seen | Seen.of(TRAINED, np.array([3])) == Seen.of(TRAINED, np.arange(4))


def test_a_copy_of_an_altered_copy_is_found_where_it_lies_alone():
    """Training held x and its altered copy y, both called recording x; elsewhere y alone is recording y."""
    seen = Seen.of(TRAINED, np.array([0, 1]))
    other = index_of([("17", "y", "y"), ("18", "v", "v"), ("ann", "u", "u"), ("19", "t", "x")])
    by_patient, by_recording = seen.find(other, np.arange(4))
    assert by_patient.tolist() == [False, False, True, False]
    assert by_recording.tolist() == [True, False, False, True]


def test_no_file_and_a_damaged_one(tmp_path):
    assert Seen.read(tmp_path) is None
    for text in ("{", '{"patients": []}', "[]"):
        (tmp_path / "seen.json").write_text(text)
        with pytest.raises(ValueError, match=r"seen.json: \w+: .*expected the lists patients and recordings"):
            Seen.read(tmp_path)
