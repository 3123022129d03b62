"""Conformal sets against crepes, and their promise on new records."""

import json

import numpy as np
import pytest
from crepes import ConformalClassifier

from medjax.statistics.conformal import CONFIDENCES, ConformalSets, fit


def sample(records, seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(records) < 0.25).astype(int)
    return y, 1 / (1 + np.exp(-rng.normal(size=records) - 2 * y + 2))


@pytest.mark.parametrize("class_conditional", [True, False])
@pytest.mark.parametrize("records", [19, 400])
def test_sets_equal_those_of_crepes(records, class_conditional):
    y, p = sample(records, 1)
    _, new = sample(300, 2)
    new[:20] = [*p[:19], 0.5]  # equal to a validation record
    found = fit(y, p, class_conditional=class_conditional)
    alphas = np.where(y == 1, 1 - p, p)
    peer = ConformalClassifier().fit(alphas, bins=y if class_conditional else None)
    table = np.stack([new, 1 - new], axis=1)
    for confidence in CONFIDENCES:
        bins = np.tile([0, 1], (300, 1)) if class_conditional else None
        columns = []
        for label in (0, 1):  # crepes takes one category a record, so labels are asked for apart
            only = None if bins is None else bins[:, label]
            columns.append(peer.predict_p(table[:, label : label + 1], bins=only, smoothing=False)[:, 0])
        expected = np.stack(columns, axis=1) > 1 - confidence + 1e-9
        np.testing.assert_array_equal(found.apply(new, confidence), expected)


def test_new_records_are_covered_in_each_class():
    covered = np.zeros(2)
    for seed in range(60):
        y, p = sample(400, 100 + seed)
        test, q = sample(400, 500 + seed)
        inside = fit(y, p).apply(q, 0.9)[np.arange(400), test]
        covered += [inside[test == 0].mean() / 60, inside[test == 1].mean() / 60]
    # at least 0.9, and by no more than 1 / (n + 1) of a class above it
    assert 0.895 < covered[0] < 0.915
    assert 0.89 < covered[1] < 0.925


def test_a_patient_with_many_records_counts_once():
    """Thirty patients, of whom one has two hundred odd records: the limits are of thirty, not of that one."""
    rng = np.random.default_rng(5)
    p = np.r_[rng.uniform(0.1, 0.3, 30), np.full(200, 0.95)]
    y = np.zeros(230)
    patients = np.r_[np.arange(30), np.zeros(200, int)]
    found = fit(y, p, patients, class_conditional=False)
    assert found.records == (30, 30)
    assert found.limits[0][0] == pytest.approx(np.sort(p[1:30])[24], abs=0.03)
    assert found.origin == "validation, 230 records, one of each of 30 patients"
    assert fit(y, p).limits[0][0] == 0.95
    # of each label one record
    y[:30], y[30:] = 0, 1
    apart = fit(y, p, patients)
    assert apart.records == (30, 1)


def test_a_cluster_of_records_is_covered_as_promised():
    """Patients whose records are alike: by record the mean coverage of a new patient falls short."""
    covered = np.zeros(2)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        sizes = rng.choice([1, 40], 60, p=[0.9, 0.1])
        level = rng.normal(size=60) + 1.5 * (sizes == 1)  # those with many records are the easier ones
        owner = np.repeat(np.arange(60), sizes)
        p = 1 / (1 + np.exp(-level[owner]))
        new = 1 / (1 + np.exp(-rng.normal(size=400) - 1.5 * (rng.random(400) < 0.9)))
        y = np.zeros(len(p))
        for place, own in enumerate((owner, None)):
            covered[place] += fit(y, p, own).apply(new, 0.8)[:, 0].mean() / 150
    assert 0.78 < covered[0] < 0.84
    assert abs(covered[1] - 0.8) > 0.08


def test_too_few_records_exclude_nothing():
    found = fit([0] * 30 + [1] * 3, np.linspace(0.1, 0.9, 33))
    assert found.records == (30, 3)
    assert found.apply([0.0], 0.8).tolist() == [[True, True]]  # 4 * 0.8 > 3 positives
    assert found.apply([1.0], 0.9).tolist() == [[False, True]]


def test_sets_travel_as_json():
    y, p = sample(30, 3)
    found = fit(y, p, origin="validation")
    text = json.dumps(found.to_json(), allow_nan=False)
    assert ConformalSets.from_json(json.loads(text)) == found
    assert found.origin == "validation, 30 records"


def test_wrong_confidence_is_refused():
    y, p = sample(30, 3)
    with pytest.raises(ValueError, match=r"confidence: got 0.85, expected one that the checkpoint holds: 0.8, 0.9"):
        fit(y, p).apply(p, 0.85)
    with pytest.raises(ValueError, match="confidences: got 90"):
        fit(y, p, confidences=(90,))
