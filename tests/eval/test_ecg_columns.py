"""Subgroups and the columns of trivial classifiers."""

from pathlib import Path

import numpy as np
import pytest
from ecg_index import Data

from medjax.eval.ecg_columns import Columns


def columns_of(data):
    return Columns(data, np.arange(len(data)))


def test_a_source_is_the_first_folder_in_which_paths_differ():
    data = Data(["/data/a/north/1/x.hea", "/data/a/north/2/x.hea", "/data/a/south/x.hea"])
    assert columns_of(data).groups("lvsd")["source"].tolist() == ["north", "north", "south"]
    flat = Data(["one.xml", "two.xml"])
    assert "source" not in columns_of(flat).groups("lvsd")  # nothing to tell apart
    several = Data(["/p/q/1.hea", "/p/q/2.hea", "/r/1.hea"], folders=(Path("ward"), Path("clinic")), folder=[0, 0, 1])
    assert columns_of(several).groups("lvsd")["source"].tolist() == ["ward", "ward", "clinic"]


def test_rare_devices_are_put_together():
    names = ["common"] * 5 + [f"d{i:02}" for i in range(20)] + [""]
    groups = columns_of(Data(["x"] * 26, device=np.array(names))).groups("lvsd")["device"]
    assert len(set(groups)) == 13
    assert groups[:5].tolist() == ["common"] * 5
    assert (groups == "others").sum() == 10
    assert groups[-1] == "unknown"


def test_the_target_is_neither_a_subgroup_nor_a_predictor_of_itself():
    columns = columns_of(Data(["x", "y", "z"]))
    assert set(columns.groups("sex")) == {"age band"}
    assert set(columns.groups("age")) == {"sex"}
    assert set(columns.trivial("sex")["age"]) == {"age"}
    assert set(columns.trivial("age")["sex"]) == {"sex"}
    assert set(columns.trivial("lvsd")) == {"source and device", "age and sex"}


def test_labels_make_subgroups():
    data = Data(["x"] * 15, labels={"rhythm": np.array([0.0, 1, np.nan] * 5), "ef": np.arange(15.0)})
    found = columns_of(data).groups("lvsd", ["rhythm"])["rhythm"]
    assert found[:3].tolist() == ["0", "1", "unknown"]
    with pytest.raises(ValueError, match=r"report.subgroups: ef: got 15 values, expected 12 classes at most"):
        columns_of(data).groups("lvsd", ["ef"])
