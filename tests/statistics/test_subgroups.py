"""Tables of subgroups: every group counted, small ones marked, intervals always."""

import numpy as np
import pytest

from medjax.statistics import delong, subgroups
from medjax.statistics.bootstrap import PatientBootstrap, patient_numbers, weighted_mean
from medjax.statistics.intervals import wilson


def test_age_bands_and_names():
    bands = subgroups.age_bands([17.9, 18, 39.9, 40, 79.9, 80, 101, np.nan])
    assert bands.tolist() == ["<18", "18-39", "18-39", "40-49", "70-79", "80+", "80+", "unknown"]
    names = subgroups.named_groups(["GE", None, "", float("nan"), 7])
    assert names.tolist() == ["GE", "unknown", "unknown", "unknown", "7"]


def test_detector_table():
    rng = np.random.default_rng(0)
    y = rng.random(300) < 0.4
    s = rng.normal(size=300) + y
    sex = np.array(["female"] * 140 + ["male"] * 150 + ["unknown"] * 10, object)
    age = rng.uniform(30, 60, 300)
    age[:3] = 10.0
    y[290:] = True  # one class only among the unknown
    patients = patient_numbers(np.arange(300) // 2, 300)
    rows = subgroups.of_detector(y, s, s > 0.5, patients, {"age band": subgroups.age_bands(age), "sex": sex})
    assert [row["by"] for row in rows[-3:]] == ["sex"] * 3
    assert [row["value"] for row in rows if row["by"] == "age band"] == ["<18", "18-39", "40-49", "50-59"]
    female, _, unknown = rows[-3:]
    assert (female["records"], female["patients"], female["positive"]) == (140, 70, int(y[:140].sum()))
    assert female["auroc"] == delong.interval(y[:140], s[:140], np.arange(140) // 2)
    assert female["small"] is False
    assert (unknown["small"], unknown["auroc"].value, unknown["specificity"].value) == (True, None, None)
    assert unknown["auroc"].reason == "all 10 records are positive"
    assert unknown["sensitivity"].value == pytest.approx((s[290:] > 0.5).mean())
    assert unknown["sensitivity"].low < unknown["sensitivity"].value
    assert sum(row["records"] for row in rows if row["by"] == "age band") == 300
    young = rows[0]
    assert (young["records"], young["small"]) == (3, True)
    assert young["prevalence"].high > wilson(int(y[:3].sum()), 3).estimate


def test_regression_table():
    true = np.arange(40.0)
    predicted = true + np.tile([1, -3], 20)
    group = np.array(["a"] * 30 + ["b"] * 10, object)
    patients = np.arange(40) // 2
    rows = subgroups.of_regression(true, predicted, patients, {"device": group}, resamples=300, seed=1)
    assert [(r["value"], r["records"], r["patients"], r["small"]) for r in rows] == [
        ("a", 30, 15, False),
        ("b", 10, 5, True),
    ]
    expected = PatientBootstrap(patients[:30], resamples=300, seed=1).estimate(weighted_mean(np.tile([1, 3.0], 15)))
    assert rows[0]["mae"] == expected
    assert rows[1]["bias"].value == -1


def test_wrong_length_is_refused():
    with pytest.raises(ValueError, match="groups: sex: got 1 entries, expected 2"):
        subgroups.of_detector([0, 1], [0, 1], [0, 1], [0, 1], {"sex": ["f"]})
