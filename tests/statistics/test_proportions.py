"""Shares with several records a patient, and predictive values at another prevalence."""

import numpy as np
import pytest

from medjax.statistics.bootstrap import Estimate, PatientBootstrap, weighted_mean
from medjax.statistics.intervals import wilson
from medjax.statistics.proportions import predictive_values, share


def test_one_record_a_patient_is_the_wilson_interval():
    found = share([1] * 81 + [0] * 182)
    expected = wilson(81, 263)
    assert (found.value, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert found.method == "Wilson"
    assert share([1, 1, 0], [0, 0, 0], nothing="no record is positive").reason == "no record is positive"


def test_equal_records_of_a_patient_count_once():
    hits = np.random.default_rng(0).random(200) < 0.3
    once = share(hits)
    many = share(np.repeat(hits, 4), None, np.repeat(np.arange(200), 4))
    # up to n / (n - 1) of the variance between patients
    assert (many.low, many.high) == pytest.approx((once.low, once.high), abs=2e-4)
    assert many.method == "Wilson, by patient"
    none = share(np.zeros(40), None, np.repeat(np.arange(10), 4))
    assert (none.low, none.high) == pytest.approx((0, wilson(0, 10).high))


def test_clustered_share_agrees_with_the_bootstrap():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(300), 5)
    hits = rng.random(1500) < rng.beta(1, 2, 300)[patients]
    found = share(hits, None, patients)
    drawn = PatientBootstrap(patients, resamples=4000).estimate(weighted_mean(hits))
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.004)


def test_predictive_values_follow_bayes():
    # of 10,000 people 200 are ill: 180 found, 20 missed; 980 false alarms, 8820 rightly left alone
    sensitivity, specificity = share([1] * 90 + [0] * 10), share([1] * 900 + [0] * 100)
    ppv, npv = predictive_values(sensitivity, specificity, 0.02)
    assert ppv.value == pytest.approx(180 / 1160)
    assert npv.value == pytest.approx(8820 / 8840)
    assert ppv.low < ppv.value < ppv.high < 0.2


def test_interval_of_predictive_values_agrees_with_simulation():
    sensitivity, specificity = share([1] * 400 + [0] * 100), share([1] * 900 + [0] * 100)
    rng = np.random.default_rng(2)
    tp, fp = rng.binomial(500, 0.8, 40_000) / 500, rng.binomial(1000, 0.1, 40_000) / 1000
    for estimate, drawn in zip(
        predictive_values(sensitivity, specificity, 0.05),
        (0.05 * tp / (0.05 * tp + 0.95 * fp), 0.95 * (1 - fp) / (0.95 * (1 - fp) + 0.05 * (1 - tp))),
        strict=True,
    ):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=0.02)


def test_predictive_values_at_the_ends():
    ppv, npv = predictive_values(share([1] * 8 + [0] * 2), share([1] * 50), 0.1)
    limit = wilson(50, 50).low
    # no false alarm: the formula's limit, the sensitivity against the most false alarms that are likely
    assert (ppv.value, ppv.high) == (1.0, 1.0)
    assert ppv.low == pytest.approx(0.1 * 0.8 / (0.1 * 0.8 + 0.9 * (1 - limit)))
    assert 0.9 < npv.low < npv.value < npv.high < 1
    never = predictive_values(share([0] * 10), share([1] * 10), 0.1)
    assert (never[0].value, never[0].reason) == (None, "no record is called so")
    assert predictive_values(Estimate(None, reason="no record is positive"), share([1]), 0.1)[0].value is None
    with pytest.raises(ValueError, match="prevalence: got 2"):
        predictive_values(share([1]), share([1]), 2)
