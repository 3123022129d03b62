"""Errors, limits of agreement and the age gap against scikit-learn, SciPy and closed forms."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from medjax.statistics import agreement
from medjax.statistics.agreement import GapCorrection, fit_gap_correction
from medjax.statistics.bootstrap import PatientBootstrap


def sample(records=400, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 90, records)
    return age, 25 + 0.55 * age + rng.normal(0, 6, records)


def test_errors_equal_scikit_learn():
    age, predicted = sample()
    found = agreement.errors(age, predicted, PatientBootstrap(np.arange(400), resamples=500))
    line = stats.linregress(age, predicted)
    for name, expected in {
        "mae": metrics.mean_absolute_error(age, predicted),
        "rmse": math.sqrt(metrics.mean_squared_error(age, predicted)),
        "r2": metrics.r2_score(age, predicted),
        "r": line.rvalue,
        "slope": line.slope,
        "bias": (predicted - age).mean(),
    }.items():
        assert found[name].value == pytest.approx(expected, abs=1e-10), name
        assert found[name].low < expected < found[name].high
    # Fisher's interval of a correlation
    z, half = math.atanh(line.rvalue), 1.959964 / math.sqrt(397)
    assert (found["r"].low, found["r"].high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=0.012)


def test_resamples_equal_repeated_records():
    age, predicted = sample(50, 1)
    weights = np.concatenate(list(PatientBootstrap(np.arange(50) // 2, resamples=7).weights()))
    found = {name: f(weights) for name, f in agreement.error_statistics(age, predicted).items()}
    for row, weight in enumerate(weights.astype(int)):
        x, y = np.repeat(age, weight), np.repeat(predicted, weight)
        assert found["r2"][row] == pytest.approx(metrics.r2_score(x, y), abs=1e-10)
        assert found["r"][row] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-10)
        assert found["rmse"][row] == pytest.approx(math.sqrt(metrics.mean_squared_error(x, y)), abs=1e-10)


def test_limits_of_agreement_and_their_closed_form_intervals():
    rng = np.random.default_rng(2)
    age = rng.uniform(20, 90, 500)
    predicted = age + rng.normal(1.5, 4, 500)
    found = agreement.bland_altman(age, predicted, PatientBootstrap(np.arange(500), resamples=6000))
    d = predicted - age
    sd = d.std(ddof=1)
    assert (found["bias"].value, found["sd"].value) == pytest.approx((d.mean(), sd), abs=1e-10)
    assert found["lower_limit"].value == pytest.approx(d.mean() - 1.959964 * sd, abs=1e-5)
    assert found["upper_limit"].value == pytest.approx(d.mean() + 1.959964 * sd, abs=1e-5)
    # Bland and Altman, Statistical Methods in Medical Research 8 (1999) 135: variance of a limit, normal differences
    spread = sd * math.sqrt(1 / 500 + 1.959964**2 / (2 * 499))
    assert found["upper_limit"].high - found["upper_limit"].low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_corrected_gap_does_not_depend_on_age():
    age, predicted = sample(6000, 3)
    correction = fit_gap_correction(age, predicted)
    line = stats.linregress(age, predicted)
    assert (correction.slope, correction.intercept) == pytest.approx((line.slope, line.intercept))
    new_age, new = sample(2000, 4)
    bootstrap = PatientBootstrap(np.arange(2000), resamples=300)
    raw, corrected = (agreement.gap(new_age, p, bootstrap) for p in (new, correction.apply(new, new_age)))
    assert raw["correlation_with_age"].high < -0.8
    assert abs(corrected["correlation_with_age"].value) < 0.1
    assert abs(corrected["mean"].value) < 1
    assert corrected["sd"].value == pytest.approx(6, rel=0.05)  # the noise that was put in
    # Beheshti's form: a line fitted to the gap is subtracted
    gap_line = stats.linregress(age, predicted - age)
    other = new - (gap_line.slope * new_age + gap_line.intercept)
    np.testing.assert_allclose(correction.apply(new, new_age), other, atol=1e-9)
    assert GapCorrection.from_json(json.loads(json.dumps(correction.to_json()))) == correction


def test_what_cannot_be_fitted_says_why():
    assert fit_gap_correction([50, 50, 50, 50], [1, 2, 3, 4]).reason.startswith("all 4 records are 50 years old")
    short = fit_gap_correction([50, 60], [1, 2])
    assert short.reason == "2 records: no correction can be fitted"
    assert short.apply([40.0], [50.0]).tolist() == [40.0]
    flat = agreement.errors([50, 50, 50], [49, 50, 51], PatientBootstrap([1, 2, 3], resamples=50))
    assert (flat["r2"].value, flat["r"].value) == (None, None)
    assert flat["mae"].value == pytest.approx(2 / 3)


def test_decades():
    age = np.array([39.9, 40, 45, 49, 81])
    predicted = age + np.array([1, 2, 3, 4, -5.0])
    rows = agreement.by_decade(age, predicted, PatientBootstrap(["a", "b", "b", "c", "d"], resamples=400))
    assert [(row["from"], row["to"], row["records"], row["patients"]) for row in rows] == [
        (30, 40, 1, 1),
        (40, 50, 3, 2),
        (80, 90, 1, 1),
    ]
    assert [row["bias"].value for row in rows] == pytest.approx([1, 3, -5])
    assert rows[2]["mae"].value == pytest.approx(5)
    assert rows[0]["bias"].low is None
    assert (rows[1]["bias"].low, rows[1]["bias"].high) == pytest.approx((2.5, 4))
    assert all(row["small"] for row in rows)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="true, predicted: got shapes"):
        agreement.errors([1, 2], [1], PatientBootstrap([1]))
    with pytest.raises(ValueError, match="not finite"):
        fit_gap_correction([1, float("nan")], [1, 2])
