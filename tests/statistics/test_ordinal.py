"""Ordered classes against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from medjax.statistics import ordinal
from medjax.statistics.bootstrap import PatientBootstrap


def test_agreement_equals_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 300)
    predicted = np.clip(true + rng.integers(-1, 2, 300), 0, 3)
    found = ordinal.errors(true, predicted, 4, PatientBootstrap(np.arange(300), resamples=1000))
    quadratic = metrics.cohen_kappa_score(true, predicted, weights="quadratic")
    linear = metrics.cohen_kappa_score(true, predicted, weights="linear")
    assert found["weighted_kappa"].value == pytest.approx(quadratic, abs=1e-12)
    assert found["linear_kappa"].value == pytest.approx(linear, abs=1e-12)
    assert found["mae"].value == pytest.approx(metrics.mean_absolute_error(true, predicted), abs=1e-12)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-12)
    assert found["weighted_kappa"].low < quadratic < found["weighted_kappa"].high
    np.testing.assert_array_equal(ordinal.confusion(true, predicted, 4), metrics.confusion_matrix(true, predicted))


def test_resamples_equal_repeated_records():
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    weights = np.concatenate(list(PatientBootstrap(np.arange(60) // 2, resamples=8).weights()))
    found = ordinal.weighted_kappa(true, predicted, 3, power=2)(weights)
    for kappa, weight in zip(found, weights.astype(int), strict=True):
        x, y = np.repeat(true, weight), np.repeat(predicted, weight)
        assert kappa == pytest.approx(metrics.cohen_kappa_score(x, y, weights="quadratic"), abs=1e-12)


def test_one_class_is_undefined_and_wrong_classes_are_refused():
    assert ordinal.errors([1, 1], [1, 1], 3, PatientBootstrap([1, 2], resamples=5))["weighted_kappa"].value is None
    with pytest.raises(ValueError, match="got 0 to 3, expected classes 0 to 2"):
        ordinal.confusion([0, 3], [1, 1], 3)
