"""Net benefit and risk-coverage against plain loops."""

import tracemalloc

import numpy as np
import pytest

from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.decision import RiskCoverage, net_benefit, net_benefit_of_all


def test_net_benefit_by_hand():
    y, p = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.6, 0.1, 0.2])
    found = net_benefit(y, p, [0.2, 0.5])(np.ones((1, 5)))[0]
    # at 0.2 two are found for two false alarms, each a quarter; at 0.5 one for one
    assert found == pytest.approx([(2 - 2 * 0.25) / 5, (1 - 1 * 1.0) / 5])
    assert net_benefit_of_all(y, [0.2, 0.5]) == pytest.approx([(2 - 3 * 0.25) / 5, (2 - 3) / 5])
    with pytest.raises(ValueError, match="thresholds: got"):
        net_benefit(y, p, [0.0, 0.5])


def test_net_benefit_of_resamples_equals_repeated_records():
    rng = np.random.default_rng(0)
    y, p, t = rng.random(50) < 0.4, rng.random(50), np.array([0.1, 0.3, 0.7])
    weights = np.concatenate(list(PatientBootstrap(np.arange(50), resamples=9).weights()))
    found = net_benefit(y, p, t)(weights)
    for row, weight in enumerate(weights.astype(int)):
        yy, pp = np.repeat(y, weight), np.repeat(p, weight)
        plain = [((pp >= x) & yy).sum() / 50 - ((pp >= x) & ~yy).sum() / 50 * x / (1 - x) for x in t]
        np.testing.assert_allclose(found[row], plain, atol=1e-12)


def test_net_benefit_of_a_million_records_takes_their_memory():
    """And not that of records times thresholds, which would be 720 MB; thresholds in any order."""
    rng = np.random.default_rng(0)
    p = rng.random(1_000_000)
    y = rng.random(1_000_000) < p
    t = np.arange(1, 91) / 100
    weights = np.ones((1, len(p)))
    tracemalloc.start()
    found = net_benefit(y, p, t[::-1])(weights)[0][::-1]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6
    # E: share of positives above t minus odds times that of negatives
    expected = (1 - t**2) / 2 - (1 - t) ** 2 / 2 * t / (1 - t)
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_area_is_the_mean_risk_of_all_coverages():
    rng = np.random.default_rng(1)
    errors, confidence = rng.random(80) < 0.2, rng.random(80)
    curve = RiskCoverage.of(errors, confidence)
    ranked = errors[np.argsort(-confidence)]
    risks = [ranked[: k + 1].mean() for k in range(80)]
    assert curve.area(np.ones((1, 80)))[0] == pytest.approx(np.mean(risks), abs=1e-12)
    best = [np.sort(errors)[: k + 1].mean() for k in range(80)]
    assert curve.excess() == pytest.approx(np.mean(risks) - np.mean(best), abs=1e-12)
    found = curve.risk_at([0.1, 0.5, 1.0])(np.ones((1, 80)))[0]
    assert found == pytest.approx([ranked[:8].mean(), ranked[:40].mean(), errors.mean()])


def test_weights_equal_repeated_records():
    rng = np.random.default_rng(2)
    errors, confidence = rng.random(40) < 0.3, rng.random(40)
    weights = np.concatenate(list(PatientBootstrap(np.arange(40), resamples=6).weights()))
    curve = RiskCoverage.of(errors, confidence)
    order = np.argsort(-confidence)
    for row, weight in zip(curve.risk_at([0.25, 0.8])(weights), weights.astype(int), strict=True):
        # repeated records are equally sure; the risk is read at the end of the last one
        ends = np.cumsum(weight[order])
        wrong = np.cumsum(weight[order] * errors[order])
        plain = [next(w / e for w, e in zip(wrong, ends, strict=True) if e >= share * 40) for share in (0.25, 0.8)]
        assert row == pytest.approx(plain)


def test_ties_do_not_depend_on_the_order_of_records():
    errors = np.array([1, 0, 0, 1, 0, 0.0])
    confidence = np.array([2, 2, 2, 2, 1, 1])
    found = RiskCoverage.of(errors, confidence).area(np.ones((1, 6)))
    turned = RiskCoverage.of(errors[::-1], confidence[::-1]).area(np.ones((1, 6)))
    assert found == pytest.approx(turned)
    # half of the first four are wrong, so the risk is 1/2 there, then 2/5 and 2/6
    assert found[0] == pytest.approx((4 * 0.5 + 0.4 + 1 / 3) / 6)
    with pytest.raises(ValueError, match="errors, confidence: got shapes"):
        RiskCoverage.of([0, 1], [1])
