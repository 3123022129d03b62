"""Names, copies and labels of all records together."""

from pathlib import Path

import numpy as np
from made_records import made_record

from medjax.data.ecg.duplicates import find_twins
from medjax.data.ecg.index import Facts
from medjax.data.ecg.labels import read_labels
from medjax.data.ecg.storage import to_row
from medjax.ingest.decisions import decide, unique_ids


def facts_of(*named, seeds=None):
    """Facts of records given as (id, source, number)."""
    seeds = seeds or range(len(named))
    rows = [
        to_row(made_record(seed, id=name), source=source, number=number)
        for seed, (name, source, number) in zip(seeds, named, strict=True)
    ]
    return [Facts.of(place, row) for place, row in enumerate(rows)], rows


def test_ids_become_unique_by_folder_file_and_number():
    facts, _ = facts_of(
        ("E1", "east/E1.hea", 0),
        ("E1", "west/E1.hea", 0),
        ("E2", "east/E2.hea", 0),
        ("S", "s.dcm", 0),
        ("S", "s.xml", 0),
        ("M", "deep/m.xml", 0),
        ("M", "deep/m.xml", 1),
        ("east/E1", "other.hea", 0),
        ("X", "../../x.hea", 0),
        ("X", "/data/x.hea", 0),
        ("Y", "../y.hea", 0),
        ("Y", "../../y.hea", 0),
    )
    named, renamed = unique_ids(facts)
    assert [fact.id for fact in named] == [
        *("east/E1.hea:E1", "west/E1", "E2", "s.dcm:S", "s.xml:S", "deep/m.xml#0:M", "deep/m.xml#1:M"),
        *("other.hea:east/E1", "X", "data/X", "y.hea#0:Y", "y.hea#0:Y~2"),
    ]
    assert renamed["west/E1"] == "E1"
    assert len(renamed) == 10


def test_exact_copies_are_left_out_when_wanted(tmp_path):
    facts, rows = facts_of(*((f"E{i}", f"E{i}.hea", 0) for i in range(5)), seeds=[1, 2, 1, 2, 3])
    twins = find_twins(facts, rows)
    kept = decide(facts, twins, None, root=tmp_path)
    assert kept.index["id"].tolist() == [f"E{i}" for i in range(5)]
    assert [(pair.first, pair.second) for pair in kept.twins.pairs] == [(0, 2), (1, 3)]
    assert kept.dropped == []
    fewer = decide(facts, twins, None, root=tmp_path, drop_copies=True)
    assert fewer.index["id"].tolist() == ["E0", "E1", "E4"]
    assert fewer.index["row"].tolist() == [0, 1, 4]
    assert fewer.index["recording"].tolist() == fewer.index["waveform"].tolist()
    assert (fewer.twins.pairs, fewer.dropped) == ((), ["E2", "E3"])


def test_labels_join_those_of_the_files(tmp_path):
    facts, rows = facts_of(("E1", "a/E1.hea", 0), ("E1", "b/E1.hea", 0), ("E2", "E2.hea", 0), ("E3", "E3.hea", 0))
    facts[2].labels, facts[3].labels = {"AF": 0.0, "EF": 60.0}, {"AF": 1.0}
    (tmp_path / "labels.csv").write_text("id,AF,LVH\nE1,1,1\nE2,1,\na/E1,0,1\nE9,1,1\n")
    labels = read_labels(tmp_path / "labels.csv")
    decided = decide(facts, find_twins(facts, rows), labels, root=Path("/data"))
    assert decided.index["id"].tolist() == ["a/E1", "b/E1", "E2", "E3"]
    columns = decided.index["labels"]
    assert list(columns) == ["AF", "EF", "LVH"]
    nan = np.nan
    np.testing.assert_array_equal(columns["AF"], [0, nan, 1, 1])  # the label file wins, the file's own stays elsewhere
    np.testing.assert_array_equal(columns["EF"], [nan, nan, 60, nan])
    np.testing.assert_array_equal(columns["LVH"], [1, nan, nan, nan])
    facts[0].codes, facts[1].codes = ("427393009", "426783006"), ("426783006",)
    decided = decide(
        facts, find_twins(facts, rows), labels, root=Path("/data"), code_labels={"LVH": frozenset({"427393009"})}
    )
    np.testing.assert_array_equal(decided.index["labels"]["LVH"], [1, 0, nan, nan])
    assert (decided.match.unknown, decided.match.ambiguous, decided.match.labelled) == (["E9"], ["E1"], 2)
