"""Classifiers without a signal: a label that follows the source is found, and one that does not is not."""

import numpy as np
import pytest

from medjax.statistics import baselines
from medjax.statistics.discrimination import auroc


def test_a_label_that_follows_the_source_is_found():
    rng = np.random.default_rng(0)
    source = rng.choice(["A", "B", "C"], 900)
    y = rng.random(900) < np.where(source == "A", 0.8, 0.2)
    found = baselines.of_labels("source", {"source": source}, y, np.arange(900) // 3)
    # the best order is A before the others: AUROC = (1 + tpr - fpr) / 2
    a = source == "A"
    assert auroc(y, found.scores) == pytest.approx((1 + a[y].mean() - a[~y].mean()) / 2, abs=0.02)
    assert found.features == ("source",)


def test_a_label_that_does_not_follow_anything_is_not_found():
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(4):
        y = rng.random(1500) < 0.3
        columns = {"age": rng.uniform(20, 90, 1500), "sex": rng.choice(["female", "male"], 1500)}
        areas.append(auroc(y, baselines.of_labels("age and sex", columns, y, np.arange(1500)).scores))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


def test_unknown_numbers_are_marked():
    rng = np.random.default_rng(2)
    y = rng.random(600) < 0.5
    age = np.where(y, np.nan, rng.uniform(20, 90, 600))  # an age is missing where the label is positive
    assert auroc(y, baselines.of_labels("age", {"age": age}, y, np.arange(600)).scores) > 0.99


def test_patients_are_never_on_both_sides():
    # each patient has a label and a name of its own: nothing can be learned for new patients
    patients = np.repeat(np.arange(60), 5)
    y = np.random.default_rng(3).random(60)[patients] < 0.5
    found = baselines.of_labels("patient", {"patient": patients.astype(str).astype(object)}, y, patients)
    assert auroc(y, found.scores) < 0.6


def test_numbers():
    rng = np.random.default_rng(4)
    sex = rng.choice(["female", "male"], 500)
    values = np.where(sex == "male", 60.0, 50.0) + rng.normal(0, 1, 500)
    found = baselines.of_numbers("sex", {"sex": sex}, values, np.arange(500))
    assert np.abs(values - found.scores).mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.08)


def test_what_cannot_be_made_says_why():
    y = np.array([0, 1, 0, 1])
    same = baselines.of_labels("device", {"device": ["GE"] * 4}, y, np.arange(4))
    assert (same.scores, same.reason) == (None, "device: the same for all records")
    assert baselines.of_labels("x", {"x": [1.0, 2, 3, 4]}, [0, 0, 0, 0], range(4)).reason.startswith("all 4 records")
    few = baselines.of_labels("x", {"x": [1.0, 2, 3, 4]}, [0, 0, 0, 1], np.arange(4))
    assert few.reason == "one class has a single patient: no cross-validation"
    assert baselines.of_numbers("x", {"x": [1.0, 2.0]}, [1, 2], [0, 0]).reason.startswith("a single patient")
