"""Apache Beam makes the same data set as one machine does, refusals included."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_exports import export

from medjax.data.ecg.dataset import EcgDataset
from medjax.ingest.run import ingest
from medjax.ingest.settings import BeamSettings, IngestSettings


def test_without_beam_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    settings = IngestSettings(
        str(export(tmp_path / "export")), str(tmp_path / "out"), beam=BeamSettings(runner="DirectRunner")
    )
    with pytest.raises(
        ModuleNotFoundError, match=r"beam\.runner: got DirectRunner without .*pip install 'medjax\[beam\]'"
    ):
        ingest(settings)


def test_the_direct_runner_makes_the_same_data_set(tmp_path):
    pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'medjax[beam]'")
    source = str(export(tmp_path / "export"))
    ingest(IngestSettings(source, str(tmp_path / "here"), processes=1, examples=0))
    settings = IngestSettings(source, str(tmp_path / "beam"), examples=0, beam=BeamSettings(runner="DirectRunner"))
    ingest(settings)
    here, beam = EcgDataset(tmp_path / "here"), EcgDataset(tmp_path / "beam")
    assert len(beam) == 6
    assert beam.digest == here.digest
    assert beam.index["recording"].tolist() == here.index["recording"].tolist()
    assert (beam[3].signal == here[3].signal).all()
    assert Path(tmp_path, "beam", "refused.jsonl").read_bytes() == Path(tmp_path, "here", "refused.jsonl").read_bytes()


def test_beam_without_a_record_says_why(tmp_path):
    pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'medjax[beam]'")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.xml").write_text(json.dumps("<html/>"))
    settings = IngestSettings(str(tmp_path / "export"), str(tmp_path / "out"), beam=BeamSettings(runner="DirectRunner"))
    np.savez(tmp_path / "export" / "zero.npz", signal=np.zeros((12, 1000)), fs=500)
    with pytest.raises(
        ValueError, match=r"got no record out of 2 files, expected at least one; the first, a\.xml: not"
    ):
        ingest(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "out.refused.jsonl"]
    lines = (tmp_path / "out.refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["a.xml", "zero.npz"]
