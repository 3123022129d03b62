"""Platt and temperature scaling against scikit-learn and the truth of a simulation."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medjax.statistics import calibration
from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.calibration import Calibration, fit, logistic_fits, sigmoid


def sample(records, seed=0, slope=0.5, intercept=-1.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.5, 2, records)
    return rng.random(records) < sigmoid(slope * z + intercept), z


def plain_platt(y, z):
    """Platt's targets as weighted records of both labels, which is the same loss."""
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2)
    t = np.where(y, high, low)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=2000)
    model.fit(np.r_[z, z][:, None], np.r_[np.ones(len(z)), np.zeros(len(z))], sample_weight=np.r_[t, 1 - t])
    return model.coef_[0, 0], model.intercept_[0]


def test_platt_equals_scikit_learn():
    y, z = sample(300)
    found = fit(y, z, np.arange(300), draws=5)
    assert (found.slope, found.intercept) == pytest.approx(plain_platt(y, z), abs=1e-6)
    np.testing.assert_allclose(found.apply(z), 1 / (1 + np.exp(-found.slope * z - found.intercept)), atol=1e-15)


def test_temperature_has_the_least_loss_of_all():
    y, z = sample(300, intercept=0)
    found = fit(y, z, np.arange(300), "temperature", draws=5)
    t = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    slopes = np.linspace(0.2, 1.2, 100_001)
    losses = [(np.logaddexp(0, a * z) - t * a * z).sum() for a in slopes]
    assert found.slope == pytest.approx(slopes[np.argmin(losses)], abs=1.1e-5)
    assert found.intercept == 0
    assert all(b == 0 for _, b in found.draws)


def test_draws_are_fits_on_repeated_records():
    y, z = sample(90, 2)
    patients = np.arange(90) // 3
    found = fit(y, z, patients, draws=8, seed=4)
    weights = np.concatenate(list(PatientBootstrap(patients, resamples=8, seed=4).weights())).astype(int)
    for pair, weight in zip(found.draws, weights, strict=True):
        assert pair == pytest.approx(plain_platt(np.repeat(y, weight), np.repeat(z, weight)), abs=1e-5)


def test_interval_of_a_probability_covers_the_truth():
    logits = np.array([-3.0, 0.0, 2.5])
    truth, inside = sigmoid(0.5 * logits - 1.0), np.zeros(3)
    for seed in range(150):
        y, z = sample(250, seed)
        low, high = fit(y, z, np.arange(250), draws=200, seed=seed).interval(logits)
        inside += (low <= truth) & (truth <= high)
    # 95 % of 150 is 142.5, standard deviation 2.7
    assert inside.min() >= 133
    assert low.shape == (3,)
    assert (low < high).all()


def test_interval_widens_with_the_level_and_holds_the_estimate():
    y, z = sample(400)
    found = fit(y, z, np.arange(400))
    narrow, wide = found.interval(z, level=0.5), found.interval(z, level=0.95)
    p = found.apply(z)
    assert (wide[0] < narrow[0]).all()
    assert (narrow[1] < wide[1]).all()
    assert ((wide[0] < p) & (p < wide[1])).all()


def test_separated_classes_give_finite_numbers():
    found = fit([0] * 10 + [1] * 10, np.r_[np.full(10, -2.0), np.full(10, 3.0)], np.arange(20))
    assert found.apply([-2.0, 3.0]) == pytest.approx([1 / 12, 11 / 12])  # Platt's targets themselves
    y, z = np.arange(20) >= 10, np.arange(20.0)
    assert np.isfinite(fit(y, z, np.arange(20)).draws).all()
    assert np.isnan(logistic_fits(z, y.astype(float), np.ones((1, 20)), smooth=False)).all()


def test_what_cannot_be_fitted_says_why():
    single = fit([0, 0, 0], [1.0, 2.0, 3.0], [1, 2, 3])
    assert (single.method, single.slope, single.intercept, single.draws) == ("none", 1.0, 0.0, ())
    assert single.reason == "all 3 records are negative: no calibration can be fitted"
    assert single.interval([0.0]) is None
    assert single.apply([0.0]) == 0.5
    assert fit([0, 0, 1], [1, 2, 3], [1, 2, 3]).reason.startswith("one class has a single record")
    upside_down = fit([1, 1, 1, 0, 0, 0], [1, 2, 4, 3, 5, 6], range(6), draws=5)
    assert (upside_down.method, upside_down.slope, upside_down.draws) == ("none", 1.0, ())
    assert "higher outputs did not mean more positives" in upside_down.reason
    with pytest.raises(ValueError, match="method: got 'isotonic'"):
        fit([0, 1], [0, 1], [0, 1], "isotonic")


def test_a_calibration_travels_as_json():
    y, z = sample(60)
    found = fit(y, z, np.arange(60), draws=20, origin="validation")
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert again.origin == "validation, 60 records"
    assert len(json.dumps(fit(y, z, np.arange(60)).to_json())) < 8000
    assert len(fit(y, z, np.arange(60)).draws) == calibration.DRAWS
