"""Entries of results.json that a whole evaluation does not bring about."""

import json

import numpy as np
import pytest
from ecg_index import Data

from medjax.eval import ecg_scores
from medjax.eval.ecg_columns import Columns
from medjax.models.predictor import Target
from medjax.statistics import delong
from medjax.statistics.agreement import GapCorrection
from medjax.statistics.bootstrap import Estimate
from medjax.statistics.detector import fit_detector


def judged(records, **columns):
    data = Data([f"{'ab'[i % 2]}/{i}.hea" for i in range(records)], **columns)
    patients = np.array([f"p{i // 2}" for i in range(records)])
    return ecg_scores.Judged(Columns(data, np.arange(records)), patients, (), (0.05,), resamples=100, seed=0)


def test_plain_values():
    value = {
        "a": Estimate(0.5, 0.1, 0.9, "m"),
        "b": np.array([1.0, np.nan]),
        "c": (np.int64(3), np.bool_(True)),
        4: np.inf,
    }
    assert ecg_scores.plain(value) == {
        "a": {"value": 0.5, "low": 0.1, "high": 0.9, "method": "m", "reason": ""},
        "b": [1.0, None],
        "c": [3, True],
        "4": None,
    }


@pytest.mark.parametrize(("slope", "said"), [(0.1, True), (0.6, False)])
def test_a_correction_of_predictions_that_do_not_follow_age_is_marked(slope, said):
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, 60)
    predicted = 50 * (1 - slope) + slope * age + rng.normal(0, 2, 60)
    target = Target("age", "regression", mean=50.0, sd=10.0, unit="years")
    entry = ecg_scores.regression(target, age, predicted, GapCorrection(slope, 50 * (1 - slope), 60), judged(60))
    assert entry["gap"]["corrected"]["sd"].value == pytest.approx(2, rel=0.25)
    assert ("predictions hardly follow" in entry["gap"]["corrected"]["sd"].reason) == said


def test_a_trivial_classifier_is_compared_on_the_same_patients():
    rng = np.random.default_rng(1)
    y = (rng.random(400) < np.where(np.arange(400) % 2, 0.7, 0.2)).astype(float)  # the source tells much
    z = rng.normal(size=400) + y
    labels = y.copy()
    labels[::50] = np.nan
    rule = fit_detector(y, z, np.arange(400), draws=20)
    entry = ecg_scores.binary(Target("lvsd", "binary"), labels, z, rule, judged(400))
    assert (entry["counts"]["records"], entry["counts"]["unknown"]) == (392, 8)
    source, person = entry["baselines"]
    assert source["auroc"].value > 0.7
    assert source["difference"].value == pytest.approx(entry["discrimination"]["auroc"].value - source["auroc"].value)
    known = ~np.isnan(labels)
    whole = delong.interval(y[known], z[known], (np.arange(400) // 2)[known])
    assert entry["discrimination"]["auroc"] == whole
    assert person["features"] == ["age", "sex"]
    assert ("below 0.5" in person["auroc"].reason) == (person["auroc"].value < 0.5)
    json.dumps(ecg_scores.plain(entry), allow_nan=False)


def test_means_over_targets_need_two_of_them():
    rng = np.random.default_rng(2)
    labels = {name: (rng.random(80) < 0.4).astype(float) for name in "ab"}
    logits = {name: rng.normal(size=80) + y for name, y in labels.items()}
    entries = [{"name": name, "kind": "binary"} for name in "ab"]
    assert ecg_scores.macro(entries[:1], labels, logits, judged(80)) is None
    both = ecg_scores.macro(entries, labels, logits, judged(80))
    single = [delong.interval(labels[name], logits[name]).value for name in "ab"]
    assert both["auroc"].value == pytest.approx(np.mean(single))
    assert both["targets"] == ["a", "b"]
