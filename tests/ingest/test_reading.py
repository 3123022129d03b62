"""Reader processes: what they send, and that files which kill, block or trick them cost themselves only."""

import sys
import time

import numpy as np
import pytest
from made_exports import disturbed, export, write_wfdb
from made_records import made_record

from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.storage import to_record
from medjax.ingest import reading
from medjax.ingest.reading import Reader, read_all, read_source
from medjax.ingest.sources import Source, find_sources


def test_all_files_are_read_as_by_the_reader_itself(tmp_path):
    sources = find_sources(export(tmp_path / "export")).files
    outcomes = {outcome.source.name: outcome for outcome in read_all(sources, processes=2, limit_s=30)}
    assert sorted(outcomes) == [source.name for source in sources]
    for source in sources:
        rows = outcomes[source.name].rows
        if source.name.startswith("bad"):
            assert rows == ()
            continue
        (record,) = read_ecg(source.path)
        back = to_record(rows[0])
        assert (back.source, back.id, back.age_years) == (source.name, record.id, record.age_years)
        np.testing.assert_allclose(back.signal, record.signal, atol=1e-6)
    reasons = {name: o.refusals[0] for name, o in outcomes.items() if o.refusals}
    assert sorted(reasons) == ["bad/B1.hea", "bad/B2.hea", "bad/B3.xml"]
    assert "truncated" in reasons["bad/B1.hea"].reason
    assert "12 flat" in reasons["bad/B2.hea"].reason
    assert "<html>" in reasons["bad/B3.xml"].reason


def test_a_reader_that_dies_or_hangs_costs_its_file_only(tmp_path):
    names = ["E1", "dies", "E2", "hangs", "exits", "fails", "E3", "E4"]
    for seed, name in enumerate(names):
        if name.startswith("E"):
            write_wfdb(tmp_path, name, seed)
    sources = [Source(tmp_path / f"{name}.hea", f"{name}.hea") for name in names]
    started = time.monotonic()
    outcomes = {o.source.path.stem: o for o in read_all(sources, processes=2, limit_s=2, read=disturbed)}
    assert time.monotonic() - started < 50
    assert sorted(outcomes) == sorted(names)
    assert [len(outcomes[name].rows) for name in names] == [1, 0, 1, 0, 0, 0, 1, 1]
    reasons = {name: outcomes[name].refusals[0].reason for name in ("dies", "hangs", "exits", "fails")}
    assert reasons == {
        "dies": "the reader process died by SIGKILL; the file may be damaged or too large.",
        "hangs": "got no answer within 2 s, expected its records by then; see --limit_s.",
        "exits": "the reader process died with exit status 3; the file may be damaged or too large.",
        "fails": "the reader failed (KeyError: 'a bug'); please report it.",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_a_file_that_takes_too_much_memory_is_refused(tmp_path):
    good = Source(write_wfdb(tmp_path, "E1", 1), "E1.hea")
    greedy = Source(tmp_path / "greedy.hea", "greedy.hea")
    reader = Reader(30, disturbed, memory_gb=2)
    try:
        assert reader.read(greedy).refusals[0].reason == (
            "needs more memory than a reader may take, expected a shorter recording; cut it, or see --memory_gb."
        )
        assert [row["id"] for row in reader.read(good).rows] == ["E1"]
    finally:
        reader.close()


def test_one_reader_waits_for_its_file(tmp_path):
    reader = Reader(20, disturbed)
    try:
        source = Source(write_wfdb(tmp_path, "E1", 1), "E1.hea")
        assert [row["id"] for row in reader.read(source).rows] == ["E1"]
        assert "SIGKILL" in reader.read(Source(tmp_path / "dies.hea", "dies.hea")).refusals[0].reason
        assert [row["id"] for row in reader.read(source).rows] == ["E1"]
    finally:
        reader.close()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "..", ".", "C:\\x", "..\\x", "~root", "a\nb", "a\0"]
)
def test_ids_that_leave_the_folder_are_refused(tmp_path, monkeypatch, name):
    source = Source(tmp_path / "x.hea", "x.hea")
    monkeypatch.setattr(reading, "read_ecg", lambda *_: [made_record(1, id=name), made_record(2, id="2020/17..b")])
    outcome = read_source(source)
    assert [row["id"] for row in outcome.rows] == ["2020/17..b"]
    (refusal,) = outcome.refusals
    assert (refusal.file, refusal.record) == ("x.hea", name)
    assert refusal.reason.startswith(f"id: got {name!r}, expected a name without control characters that stays in its")


def test_what_a_list_says_wrongly_refuses_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "read_ecg", lambda *_: [made_record(1)])
    outcome = read_source(Source(tmp_path / "x.hea", "x.hea", {"time": "yesterday"}))
    assert "time: got yesterday, expected ISO 8601" in outcome.refusals[0].reason
    monkeypatch.setattr(reading, "read_ecg", lambda *_: [])
    assert "got a file without an ECG" in read_source(Source(tmp_path / "x.hea", "x.hea")).refusals[0].reason
