"""Records written by the builder come back from disk as they were; the index is the same in whatever order."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_records import made_record, made_signal
from tensorflow_datasets.core import shuffle

from medjax.data.ecg.builder import key_of, read_facts, write_dataset, write_examples
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.index import index_digest, make_index
from medjax.data.ecg.storage import to_row

ROOT = Path(__file__).resolve().parents[3]


def records(count=8):
    return [
        made_record(
            seed,
            seconds=4 + seed % 3,
            rate=(500.0, 250.0, 257.142857)[seed % 3],
            patient=f"P{seed // 2}" if seed % 4 else None,
            age_years=40.0 + seed if seed % 3 else None,
            sex=("female", "male", None)[seed % 3],
            device="MAC 5500" if seed % 2 else None,
            mains_hz=(None, 50, 60)[seed % 3],
            labels={"AF": float(seed % 2)} if seed % 4 else {"EF": 10.0 * seed},
            codes=("426783006", "洞調律") if seed % 2 else (),
        )
        for seed in range(count)
    ]


def test_records_come_back(tmp_path):
    made = records()
    dataset = write_dataset(tmp_path / "set", made)
    assert len(dataset) == 8
    assert dataset.index["id"].tolist() == [record.id for record in made]
    for place, record in enumerate(made):
        back = dataset[place]
        np.testing.assert_allclose(back.signal, record.signal, rtol=0, atol=5e-7)
        measured = [0, 1, 6, 7, 8, 9, 10, 11]
        np.testing.assert_array_equal(back.signal[measured], record.signal[measured])
        for name in ("id", "sampling_rate_hz", "status", "age_years", "sex", "patient", "device", "time", "mains_hz"):
            assert getattr(back, name) == getattr(record, name)
        assert (back.labels, back.codes, back.source) == (record.labels, record.codes, record.source)


def test_the_index_says_what_the_records_say(tmp_path):
    made = records()
    index = write_dataset(tmp_path / "set", made).index
    nan = np.nan
    np.testing.assert_array_equal(index["age_years"], [nan, 41, 42, nan, 44, 45, nan, 47])
    assert index["patient"].tolist() == ["", "P0", "P1", "P1", "", "P2", "P3", "P3"]
    assert index["sampling_rate_hz"].tolist() == [record.sampling_rate_hz for record in made]
    assert index["samples"].tolist() == [record.samples for record in made]
    assert index["mains_hz"].tolist() == [0, 50, 60, 0, 50, 60, 0, 50]
    assert index["usable"].shape == (8, 12)
    assert index["usable"].all()
    assert index["waveform"].tolist() == [to_row(record)["waveform"] for record in made]
    assert index["recording"].tolist() == index["waveform"].tolist()
    assert index["codes"][1] == ("426783006", "洞調律")
    np.testing.assert_array_equal(index["labels"]["AF"], [nan, 1, 0, 1, nan, 1, 0, 1])
    np.testing.assert_array_equal(index["labels"]["EF"], [0, nan, nan, nan, 40, nan, nan, nan])


def test_index_and_digest_do_not_depend_on_the_order_of_writing(tmp_path):
    made = [to_row(record) for record in records()]
    for name, rows in (("a", made), ("b", made[::-1])):
        write_examples(tmp_path / name, lambda rows=rows: iter((key_of(row), row) for row in rows))
    facts = [sorted(read_facts(tmp_path / name), key=lambda f: f.source) for name in ("a", "b")]
    assert [f.id for f in facts[0]] == [f.id for f in facts[1]] == [f"r{i:03d}" for i in range(8)]
    assert [f.row for f in facts[0]] == [f.row for f in facts[1]][::-1] == list(range(8))
    one, other = (make_index(found, tuple(f.waveform for f in found)) for found in facts)
    assert index_digest(one) == index_digest(other)


def test_there_may_be_more_than_tensorflow_datasets_sorts_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    assert len(write_dataset(tmp_path / "set", records())) == 8


def test_twins_are_in_the_index(tmp_path):
    signal = made_signal(1)
    made = [made_record(1, signal=signal), made_record(2), made_record(3, signal=signal)]
    made.append(made_record(4, signal=(0.37 * signal[:, 300:]).astype(np.float32)))
    index = write_dataset(tmp_path / "set", made).index
    assert index["waveform"][0] == index["waveform"][2] != index["waveform"][3]
    assert (index["recording"] == index["waveform"][0]).tolist() == [True, False, True, True]


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="got no record, expected at least one"):
        write_dataset(tmp_path / "set", [])


def test_tensorflow_and_jax_are_not_needed(tmp_path):
    write_dataset(tmp_path / "set", records(3))
    code = f"""
import sys
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.index import index_digest, make_index
old = EcgDataset({str(tmp_path / "set")!r})
write_dataset({str(tmp_path / "again")!r}, [old[i] for i in range(3)])
print([name for name in ("jax", "tensorflow", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert EcgDataset(tmp_path / "again").digest == EcgDataset(tmp_path / "set").digest
