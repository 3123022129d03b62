"""A whole ingest: what is stored, refused, counted and told; folders whole or absent, found again, moved aside."""

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_exports import export, write_wfdb

from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.splits import patient_keys, refuse_leaks
from medjax.ingest.run import ingest
from medjax.ingest.settings import IngestSettings

ROOT = Path(__file__).resolve().parents[2]
LABELS = "id,low_ef\nE2,yes\nW2,0\nghost,1\nE1,1\nW3,perhaps\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export with labels, ingested: settings, data set, report, lines told."""
    root = tmp_path_factory.mktemp("made")
    export(root / "export")
    (root / "labels.csv").write_text(LABELS)
    settings = IngestSettings(
        str(root / "export"), str(root / "out"), labels=str(root / "labels.csv"), processes=2, examples=1
    )
    told = []
    dataset = ingest(settings, say=told.append)
    return settings, dataset, json.loads((root / "out" / "report.json").read_text()), told


def test_records(made):
    _, dataset, _, _ = made
    assert dataset.index["id"].tolist() == ["east/E1", "E2", "E3", "west/E1", "W2", "W3"]
    np.testing.assert_array_equal(dataset.index["age_years"], [63, 51, 51, np.nan, 51, 51])
    np.testing.assert_array_equal(dataset.labels["low_ef"], [np.nan, 1, np.nan, np.nan, 0, np.nan])
    assert dataset[4].duration_s == 20
    recording = dataset.index["recording"]
    assert recording[0] == recording[2]
    assert recording[1] == recording[5] != dataset.index["waveform"][5]


def test_report(made):
    settings, dataset, report, _ = made
    assert report["files"] == {"found": 9, "refused": 3, "with_refused_records": 3, "passed_over": {}}
    assert report["records"]["stored"] == 6
    assert report["refused"]["count"] == 3
    lines = (Path(settings.out) / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["bad/B1.hea", "bad/B2.hea", "bad/B3.xml"]
    assert report["formats"] == {"WFDB": {"files": 6, "records": 6}}
    assert report["rates_hz"] == {"500": 6}
    assert report["seconds"] == {"9.2": 1, "10": 4, "20": 1}
    assert report["leads"]["V3"] == {"measured": 6, "derived": 0, "missing": 0, "flat": 0}
    assert report["ages"] == {
        **{"known": 5, "unknown": 1, "quartiles": [51.0, 51.0, 51.0]},
        "decades": {"50": {"female": 4}, "60": {"male": 1}},
    }
    assert report["patients"] == {"institution": "", "named": 0, "records_without": 6, "several": 0, "list": []}
    (exact,), (near,) = report["duplicates"]["exact"], report["duplicates"]["near"]
    assert (exact["first"], exact["second"]) == ("east/E1", "E3")
    assert (near["first"], near["second"], near["lag_s"]) == ("E2", "W3", 0.8)
    assert report["duplicates"]["recordings"] == 4
    assert report["renamed"] == {"count": 2, "list": {"east/E1": "E1", "west/E1": "E1"}}
    assert report["labels"] == {
        **{"file": "labels.csv", "labelled": 3, "lines": 5, "unknown": 1, "unknown_list": ["ghost"]},
        **{"ambiguous": 1, "ambiguous_list": ["E1"]},
        "columns": {"low_ef": {"known": 2, "binary": True, "mean": 0.5, "positive": 1}},
        "not_numbers": {"low_ef": {"count": 1, "first": "line 6: 'perhaps'"}},
    }
    assert report["codes"] == {"426783006": 6}
    assert report["digest"] == dataset.digest


def test_what_the_user_is_told(made):
    settings, _, _, told = made
    assert told[0] == f"9 files in {settings.source}; writing to {settings.out}"
    assert told[1] == "6 records of 0 named patients; 3 files or records refused"
    assert "copies of recordings: 1 exact, 1 altered" in told
    assert "labels of 1 lines name no stored record; the report lists them" in told
    assert told[-1].startswith(f"next: open {settings.out}/report.html; then python -m medjax.train ")
    page = (Path(settings.out) / "report.html").read_text()
    assert all(text in page for text in ("bad/B1.hea", "ghost", "perhaps", "east/E1", "mm/mV"))
    assert sorted(p.name for p in Path(settings.out).iterdir()) == [
        *("ecg_records", "index.parquet", "refused.jsonl", "report.html", "report.json"),
    ]


def test_a_slip_among_zeros_and_ones_is_told(tmp_path):
    for number in range(6):
        write_wfdb(tmp_path / "in", f"r{number}", number)
    (tmp_path / "labels.csv").write_text("id,lvsd\n" + "".join(f"r{n},{2 if n == 3 else n % 2}\n" for n in range(6)))
    told = []
    settings = IngestSettings(
        source=str(tmp_path / "in"), labels=str(tmp_path / "labels.csv"), out=str(tmp_path / "out"), processes=1
    )
    ingest(settings, say=told.append)
    assert (
        "labels: lvsd is 0 or 1 but for 1 of 6 records (2), which makes it one of ordered classes: are they slips?"
    ) in told


def test_real_recordings(shared_data, tmp_path):
    """Georgia's sample: E07509 and E07510 are one recording, and three ages are not known."""
    folder = shared_data / "ecg" / "cinc2021_sample" / "georgia"
    dataset = ingest(IngestSettings(str(folder), str(tmp_path / "out"), processes=1, examples=0))
    assert (len(dataset), len(set(dataset.index["recording"]))) == (33, 32)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (pair,) = report["duplicates"]["exact"]
    assert (pair["first"], pair["second"], report["duplicates"]["near"]) == ("E07509", "E07510", [])
    assert (report["ages"]["unknown"], report["rates_hz"], report["einthoven"]["off"]) == (3, {"500": 33}, 0)
    twins = np.flatnonzero(np.isin(dataset.index["id"], ["E07509", "E07510"]))
    refuse_leaks(dataset.index, {"train": twins, "test": np.array([0])})
    with pytest.raises(ValueError, match=r"the same waveform, E07509 \(train\), E07510 \(test\)"):
        refuse_leaks(dataset.index, {"train": twins[:1], "test": twins[1:]})
    assert len(set(patient_keys(dataset.index)[twins])) == 1  # so no split parts them


def test_a_second_time_reads_nothing(made, monkeypatch):
    settings, dataset, _, _ = made
    monkeypatch.setattr("medjax.ingest.run.read_here", lambda *_, **__: pytest.fail("the files were read again"))
    told = []
    assert ingest(settings, say=told.append).digest == dataset.digest
    assert told[0] == f"{settings.out} holds these files already; nothing to do"


def small(tmp_path, **more):
    write_wfdb(tmp_path / "export", "E1", 1)
    write_wfdb(tmp_path / "export", "E2", 2)
    return IngestSettings(str(tmp_path / "export"), str(tmp_path / "out"), processes=1, examples=0, **more)


def test_another_ingest_is_moved_aside(tmp_path):
    settings = small(tmp_path)
    first = ingest(settings)
    write_wfdb(tmp_path / "export", "E3", 3)
    told = []
    second = ingest(settings, say=told.append)
    assert (len(first), len(second), len(EcgDataset(tmp_path / "out.old1"))) == (2, 3, 2)
    assert "holds another ingest (files: " in told[0]
    assert f"moved the former {tmp_path}/out to {tmp_path}/out.old1" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "out", "out.old1"]


def test_dropped_copies(tmp_path):
    settings = small(tmp_path, duplicates="drop")
    write_wfdb(tmp_path / "export", "E3", 1)
    assert ingest(settings).index["id"].tolist() == ["E1", "E2"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["records"] == {"stored": 2, "dropped_copies": ["E3"]}


def test_what_is_there_is_left_alone(tmp_path):
    settings = small(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: got a folder that holds mine\.txt, expected a data set or none"):
        ingest(settings)
    with pytest.raises(ValueError, match=r"mine\.txt: got a file, expected a folder or nothing"):
        ingest(replace(settings, out=str(tmp_path / "out" / "mine.txt" / "deeper")))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def unreadable(folder):
    """Files that are refused with and without the name of a record: no XML of an ECG, all zeros, one cut short."""
    write_wfdb(folder, "cut", 1)
    (folder / "cut.dat").write_bytes((folder / "cut.dat").read_bytes()[:1000])
    np.savez(folder / "zero.npz", signal=np.zeros((12, 1000)), fs=500)
    (folder / "a.xml").write_text("<html/>")
    return folder


@pytest.mark.parametrize("names", [("a.xml",), ("zero.npz",), ("cut.hea",), ("a.xml", "cut.hea", "zero.npz")])
def test_nothing_readable_says_why_of_every_file(tmp_path, names):
    unreadable(tmp_path / "export")
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"export/{name}\n" for name in names))
    settings = IngestSettings(str(tmp_path / "list.csv"), str(tmp_path / "out"), processes=1)
    count = "1 file" if len(names) == 1 else "3 files"
    with pytest.raises(
        ValueError,
        match=rf"got no record out of {count}, expected at least one; the first, export/{names[0]}: .*out\.refused",
    ):
        ingest(settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "list.csv", "out.refused.jsonl"]
    told = [json.loads(line) for line in (tmp_path / "out.refused.jsonl").read_text().splitlines()]
    assert [line["file"] for line in told] == [f"export/{name}" for name in names]
    write_wfdb(tmp_path / "export", "cut", 1)
    (tmp_path / "list.csv").write_text("path\nexport/cut.hea\n")
    assert len(ingest(settings)) == 1
    assert not (tmp_path / "out.refused.jsonl").exists()


def test_what_is_passed_over_is_counted_and_a_signal_without_its_header_refused(tmp_path):
    settings = small(tmp_path)
    folder = tmp_path / "export"
    (folder / "orphan.dat").write_bytes((folder / "E1.dat").read_bytes())
    for name in ("set.h5", "a.csv", "b.csv", "E1.atr", "x.xml.gz", "README"):
        (folder / name).write_text("1,2\n3,4\n")
    header = (folder / "E2.hea").read_text()
    (folder / "E2.hea").write_text(header.replace("E2.dat", "signals.dat"))
    (folder / "E2.dat").rename(folder / "signals.dat")  # belongs to E2.hea, whatever it is called
    told = []
    dataset = ingest(settings, say=told.append)
    assert dataset.index["id"].tolist() == ["E1", "E2"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"]["passed_over"] == {".csv": 2, ".h5": 1, ".xml.gz": 1, "beside a .hea": 1, "none": 1}
    assert report["refused"]["list"] == [
        {
            **{"file": "orphan.dat", "record": "orphan", "field": ""},
            "reason": "got no header, expected orphan.hea beside it; put it there.",
        }
    ]
    assert told[1] == (
        "6 files passed over: 2 .csv, 1 .h5, 1 .xml.gz, 1 beside a .hea, 1 none; no ECG by name or content"
    )


def test_patients_of_two_institutions_are_told_apart(tmp_path):
    folders = []
    for number, name in enumerate(("north", "south", "")):
        write_wfdb(tmp_path / name / "export", "E1", number)
        (tmp_path / name / "list.csv").write_text("path,patient\nexport/E1.hea,17\n")
        settings = IngestSettings(
            str(tmp_path / name / "list.csv"), str(tmp_path / name / "out"), processes=1, examples=0, institution=name
        )
        ingest(settings)
        folders.append(tmp_path / name / "out")
    dataset = open_datasets(folders)
    assert dataset.index["patient"].tolist() == ["17"] * 3
    assert dataset.index["institution"].tolist() == ["north", "south", ""]
    assert patient_keys(dataset.index).tolist() == ["north:17", "south:17", "17"]
    refuse_leaks(dataset.index, {"train": np.array([0, 2]), "test": np.array([1])})
    assert "north" in (folders[0] / "report.html").read_text()


def test_a_killed_ingest_starts_cleanly(tmp_path):
    """Killed between the records and the index: no OUT; the next start removes what was left and makes it whole."""
    settings = small(tmp_path)
    script = f"""
        import time
        from pathlib import Path
        from medjax.ingest import run
        from medjax.ingest.settings import IngestSettings
        def wait(*_, **__):
            Path({str(tmp_path)!r}, "half").touch()
            time.sleep(60)
        run.decide = wait
        if __name__ == "__main__":
            run.ingest(IngestSettings({settings.source!r}, {settings.out!r}, processes=1, examples=0))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "half").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith("out")]
    assert left.name.startswith(f"out.partial-{os.uname().nodename}-{process.pid}-")
    assert (left / "ecg_records").is_dir()
    assert len(ingest(settings)) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]
