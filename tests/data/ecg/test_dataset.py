"""Data sets opened: places, several folders as one, what is damaged."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_records import made_record

from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset, open_datasets


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_dataset(root / "east", [made_record(i, patient=f"P{i}", labels={"AF": i % 2}) for i in range(4)])
    write_dataset(root / "west", [made_record(i, labels={"EF": 10.0 * i}) for i in (3, 4)])
    return [root / "east", root / "west"]


def test_records_by_place(folders):
    dataset = EcgDataset(folders[0])
    assert [dataset[i].id for i in (0, -1)] == ["r000", "r003"]
    many = dataset.read(np.array([2, 0, 2]))
    assert [record.id for record in many] == ["r002", "r000", "r002"]
    np.testing.assert_array_equal(many[0].signal, dataset[2].signal)
    assert dataset.read([]) == []
    with pytest.raises(IndexError):
        dataset[4]


def test_index_overrides_what_the_file_said(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "index.parquet")
    for name, values in (("id", list("abcd")), ("label.AF", [np.nan, 5.0, 6.0, 7.0])):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, tmp_path / "set" / "index.parquet")
    dataset = EcgDataset(tmp_path / "set")
    assert [(dataset[i].id, dict(dataset[i].labels)) for i in (0, 3)] == [("a", {}), ("d", {"AF": 7.0})]
    assert dataset.digest != EcgDataset(folders[0]).digest


def test_several_folders_are_one(folders):
    dataset = open_datasets(folders)
    assert len(dataset) == 6
    assert dataset.index["id"].tolist() == ["r000", "r001", "r002", "east:r003", "west:r003", "r004"]
    assert dataset.index["folder"].tolist() == [0, 0, 0, 0, 1, 1]
    np.testing.assert_array_equal(dataset.labels["AF"], [0, 1, 0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(dataset.labels["EF"], [np.nan] * 4 + [30, 40])
    assert [record.id for record in dataset.read([5, 3, 4])] == ["r004", "east:r003", "west:r003"]
    np.testing.assert_array_equal(dataset[3].signal, dataset[4].signal)
    assert dataset.index["waveform"][3] == dataset.index["waveform"][4]
    assert dataset.digest != open_datasets(folders[::-1]).digest
    assert open_datasets(folders[:1]).digest == EcgDataset(folders[0]).digest


def test_wrong_folders(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.parquet: no such file, expected the index of an ECG data set"):
        EcgDataset(tmp_path)
    with pytest.raises(ValueError, match="data: got no folder, expected at least one"):
        open_datasets([])
    with pytest.raises(ValueError, match="data: got a folder twice in"):
        open_datasets([folders[0], folders[0].parent / "west" / ".." / "east"])


def damaged(folder, place):
    shutil.copytree(folder, place)
    return place


def test_damaged_folders(folders, tmp_path):
    place = damaged(folders[0], tmp_path / "a")
    shutil.rmtree(place / "ecg_records")
    with pytest.raises(FileNotFoundError, match="no records there, expected those of an ECG data set"):
        EcgDataset(place)
    place = damaged(folders[0], tmp_path / "b")
    (place / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"index\.parquet: not Parquet"):
        EcgDataset(place)
    place = damaged(folders[0], tmp_path / "c")
    table = pq.read_table(place / "index.parquet")
    pq.write_table(table.replace_schema_metadata({}), place / "index.parquet")
    with pytest.raises(ValueError, match="got an index of form none, expected 1; ingest the data again"):
        EcgDataset(place)
    place = damaged(folders[0], tmp_path / "d")
    shutil.copy(folders[1] / "index.parquet", place / "index.parquet")
    table = pq.read_table(place / "index.parquet")
    table = table.set_column(table.column_names.index("row"), "row", pa.array([0, 99]))
    pq.write_table(table, place / "index.parquet")
    with pytest.raises(ValueError, match="the index names record 99, expected less than the 4 records there"):
        EcgDataset(place)


def test_index_is_readable_by_anybody(folders):
    table = pq.read_table(folders[0] / "index.parquet").to_pydict()
    assert table["id"] == ["r000", "r001", "r002", "r003"]
    assert table["label.AF"] == [0.0, 1.0, 0.0, 1.0]
    info = json.loads((folders[0] / "ecg_records" / "1.0.0" / "dataset_info.json").read_text())
    assert (info["name"], info["fileFormat"]) == ("ecg_records", "array_record")


def test_texts_of_any_length_cost_only_themselves(tmp_path):
    records = [made_record(i, patient="P" * 150 if i else "P", device="MAC 5500") for i in range(3)]
    dataset = write_dataset(tmp_path / "set", records)
    for name in ("id", "patient", "institution", "device", "time", "source", "waveform", "recording"):
        assert dataset.index[name].dtype == object
    assert dataset.index["recording"][1] is dataset.index["waveform"][1]
    assert dataset.index["device"][0] is dataset.index["device"][2]
    assert dataset.index["institution"].tolist() == [""] * 3


def test_a_set_without_institutions_is_read(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "old")
    table = pq.read_table(tmp_path / "old" / "index.parquet").drop_columns(["institution"])
    pq.write_table(table, tmp_path / "old" / "index.parquet")
    dataset = EcgDataset(tmp_path / "old")
    assert dataset.index["institution"].tolist() == [""] * 4
    assert dataset.digest == EcgDataset(folders[0]).digest
