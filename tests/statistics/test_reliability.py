"""Brier score, calibration error, reliability curve and slope against scikit-learn and plain loops."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from medjax.statistics import reliability
from medjax.statistics.bootstrap import PatientBootstrap


def sample(records=800, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, records)
    y = rng.random(records) < 1 / (1 + np.exp(-0.6 * z + 0.3))  # the model is too sure: slope 0.6
    return y, 1 / (1 + np.exp(-z))


def plain_error(y, p, place):
    return sum((place == b).mean() * abs(y[place == b].mean() - p[place == b].mean()) for b in np.unique(place))


@pytest.mark.parametrize(("mass", "strategy"), [(False, "uniform"), (True, "quantile")])
def test_curve_and_error_equal_scikit_learn(mass, strategy):
    y, p = sample()
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy=strategy)
    curve = reliability.reliability_curve(y, p, mass=mass)
    assert [entry["observed"] for entry in curve] == pytest.approx(observed, abs=1e-12)
    assert [entry["mean_predicted"] for entry in curve] == pytest.approx(predicted, abs=1e-12)
    shares = np.array([entry["records"] for entry in curve]) / 800
    error = reliability.expected_calibration_error(y, p, mass=mass)(np.ones((1, 800)))[0]
    assert error == pytest.approx((shares * np.abs(observed - predicted)).sum(), abs=1e-12)
    assert all(entry["low"] <= entry["observed"] <= entry["high"] for entry in curve)


def test_scores_equal_scikit_learn():
    y, p = sample()
    found = reliability.summary(y, p, PatientBootstrap(np.arange(800), resamples=300))
    assert found["brier"].value == pytest.approx(metrics.brier_score_loss(y, p), abs=1e-12)
    assert found["log_loss"].value == pytest.approx(metrics.log_loss(y, p), abs=1e-12)
    z = np.log(p / (1 - p))
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(z[:, None], y)
    assert found["slope"].value == pytest.approx(fitted.coef_[0, 0], abs=1e-6)
    assert found["slope"].low < 0.6 < found["slope"].high < 1
    # in the large: the mean probability of the shifted logits is the observed share
    shifted = 1 / (1 + np.exp(-z - found["intercept"].value))
    assert shifted.mean() == pytest.approx(y.mean(), abs=1e-9)


def test_bootstrap_of_each_figure_equals_repeated_records():
    y, p = sample(120, 3)
    weights = np.concatenate(list(PatientBootstrap(np.arange(120) // 2, resamples=12).weights()))
    slope, intercept = reliability.slope_and_intercept(y, p)
    found = {
        "width": reliability.expected_calibration_error(y, p, mass=False)(weights),
        "slope": slope(weights),
        "intercept": intercept(weights),
    }
    place = reliability.bins(p, mass=False)
    for row, weight in enumerate(weights.astype(int)):
        yy, pp, zz = (np.repeat(v, weight) for v in (y, p, np.log(p / (1 - p))))
        assert found["width"][row] == pytest.approx(plain_error(yy, pp, np.repeat(place, weight)), abs=1e-12)
        fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(zz[:, None], yy)
        assert found["slope"][row] == pytest.approx(fitted.coef_[0, 0], abs=1e-5)
        assert (1 / (1 + np.exp(-zz - found["intercept"][row]))).mean() == pytest.approx(yy.mean(), abs=1e-8)


def test_extreme_and_equal_probabilities():
    bootstrap = PatientBootstrap(np.arange(6), resamples=50)
    perfect = reliability.summary([0, 0, 0, 1, 1, 1], [0, 0, 0.1, 0.9, 1, 1], bootstrap)
    assert perfect["brier"].value == pytest.approx(0.02 / 6)
    assert perfect["slope"].value is None
    assert "separates the classes" in perfect["slope"].reason
    equal = reliability.summary([0, 0, 0, 1, 1, 1], [0.5] * 6, bootstrap)
    assert (equal["slope"].value, equal["brier"].value, equal["ece_mass"].value) == (None, 0.25, 0.0)
    single = reliability.summary([0] * 6, [0.1] * 6, bootstrap)
    assert single["slope"].reason == "all 6 records are negative"
    assert single["ece_width"].value == pytest.approx(0.1)
    with pytest.raises(ValueError, match="probabilities: got -1 to 2"):
        reliability.summary([0, 1], [-1, 2], PatientBootstrap([0, 1]))


def test_interval_of_the_calibration_error_reaches_towards_the_truth():
    rng = np.random.default_rng(7)
    lows, percentiles = [], []
    for seed in range(20):
        p = 1 / (1 + np.exp(-rng.normal(0, 1, 300)))
        y = rng.random(300) < p  # calibrated: the true error is 0
        bootstrap = PatientBootstrap(np.arange(300), resamples=200, seed=seed)
        found = reliability.summary(y, p, bootstrap)["ece_mass"]
        plain = bootstrap.estimate(reliability.expected_calibration_error(y, p, mass=True))
        assert found.low == pytest.approx(max(0, min(found.value, 2 * found.value - plain.high)))
        assert found.high == pytest.approx(max(found.value, 2 * found.value - plain.low))
        lows.append(found.low)
        percentiles.append(plain.low)
    assert np.mean(lows) < 0.02 < 0.05 < np.mean(percentiles)
    assert found.method == "basic bootstrap by patient"
