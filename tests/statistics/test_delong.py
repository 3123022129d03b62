"""DeLong's variance against a published example, a plain double loop, and the bootstrap."""

import math

import numpy as np
import pytest

from medjax.statistics import delong
from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.discrimination import Ranking

# Hanley and McNeil, Radiology 143 (1982) 29-36, table I: 109 CT images rated 1 (definitely normal) to 5
NORMAL, ABNORMAL = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)


def rated():
    labels = np.r_[np.zeros(58), np.ones(51)]
    return labels, np.r_[np.repeat(np.arange(1, 6), NORMAL), np.repeat(np.arange(1, 6), ABNORMAL)].astype(float)


def plain_covariance(y, scores, patients):
    """By the definitions: the kernel of every pair, structural components, Obuchowski's sums over patients."""
    areas, positives, negatives = [], [], []
    for s in scores:
        kernel = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in s[y == 0]] for a in s[y == 1]])
        areas.append(kernel.mean())
        positives.append(kernel.mean(1))
        negatives.append(kernel.mean(0))
    m, n, everybody = int((y == 1).sum()), int((y == 0).sum()), sorted(set(patients))
    with_m, with_n = len(set(patients[y == 1])), len(set(patients[y == 0]))
    found = np.zeros((len(scores), len(scores)))
    for i in range(len(scores)):
        for j in range(len(scores)):
            for p in everybody:
                a, b = patients[y == 1] == p, patients[y == 0] == p
                x = [(positives[k][a] - areas[k]).sum() for k in (i, j)]
                z = [(negatives[k][b] - areas[k]).sum() for k in (i, j)]
                found[i, j] += with_m / (with_m - 1) * x[0] * x[1] / m**2
                found[i, j] += with_n / (with_n - 1) * z[0] * z[1] / n**2
                found[i, j] += len(everybody) / (len(everybody) - 1) * (x[0] * z[1] + x[1] * z[0]) / (m * n)
    return np.array(areas), found


def test_published_example():
    # Hanley and McNeil give an area of 0.893; with DeLong's variance it is 0.8932, standard error 0.0307
    areas, variance = delong.covariance(rated()[0], [rated()[1]])
    assert areas[0] == pytest.approx(0.8932, abs=5e-5)
    assert math.sqrt(variance[0, 0]) == pytest.approx(0.0307, abs=5e-5)


def test_interval_is_symmetric_on_the_logit_scale():
    found = delong.interval(*rated())
    labels, ratings = rated()
    areas, variance = plain_covariance(labels, [ratings], np.arange(109))
    half = 1.959963985 * math.sqrt(variance[0, 0]) / (areas[0] * (1 - areas[0]))
    logits = [math.log(x / (1 - x)) for x in (found.low, found.value, found.high)]
    assert logits[1] - logits[0] == pytest.approx(half, rel=1e-8)
    assert logits[2] - logits[1] == pytest.approx(half, rel=1e-8)
    assert found.method == "DeLong, logit"


@pytest.mark.parametrize("patients_of", [lambda n: np.arange(n), lambda n: np.arange(n) // 3])
@pytest.mark.parametrize("ties", [False, True])
def test_covariance_equals_the_plain_double_loop(ties, patients_of):
    rng = np.random.default_rng(4)
    y = (rng.random(90) < 0.4).astype(int)
    scores = [rng.normal(size=90) + 0.5 * k * y for k in (1, 2, 3)]
    scores = [np.round(s) for s in scores] if ties else scores
    areas, found = delong.covariance(y, scores, patients_of(90))
    expected_areas, expected = plain_covariance(y, scores, patients_of(90))
    np.testing.assert_allclose(areas, expected_areas, atol=1e-13)
    # one record a patient has no patient with both classes: the mixed term is 0
    if len(set(patients_of(90))) == 90:
        for i in range(3):
            for j in range(3):
                kernels = [
                    np.array([[(a > b) + 0.5 * (a == b) for b in scores[k][y == 0]] for a in scores[k][y == 1]])
                    for k in (i, j)
                ]
                classic = np.cov(kernels[0].mean(1), kernels[1].mean(1))[0, 1] / (y == 1).sum()
                classic += np.cov(kernels[0].mean(0), kernels[1].mean(0))[0, 1] / (y == 0).sum()
                assert found[i, j] == pytest.approx(classic, rel=1e-10)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_repeated_records_of_a_patient_add_nothing():
    rng = np.random.default_rng(6)
    y = (rng.random(150) < 0.4).astype(int)
    s = rng.normal(size=150) + y
    once = delong.interval(y, s)
    thrice = delong.interval(np.repeat(y, 3), np.repeat(s, 3), np.repeat(np.arange(150), 3))
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high), abs=1e-12)
    naive = delong.interval(np.repeat(y, 3), np.repeat(s, 3))
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / math.sqrt(3), rel=0.02)


def test_interval_agrees_with_the_bootstrap_by_patient():
    rng = np.random.default_rng(8)
    patients = np.arange(900) // 3
    severity = rng.normal(size=300)[patients]
    y = (severity + rng.normal(size=900) > 0.5).astype(int)
    s = severity + rng.normal(size=900)
    found = delong.interval(y, s, patients)
    drawn = PatientBootstrap(patients, resamples=4000).estimate(Ranking(y, s).auroc)
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.005)


def test_paired_test():
    rng = np.random.default_rng(10)
    y = (rng.random(400) < 0.5).astype(int)
    shared = rng.normal(size=400)
    first, second = shared + y, shared + 0.3 * rng.normal(size=400) + y
    found = delong.compare(y, first, second)
    areas, spread = plain_covariance(y, [first, second], np.arange(400))
    z = (areas[1] - areas[0]) / math.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    assert found.difference.value == pytest.approx(areas[1] - areas[0], abs=1e-12)
    assert found.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-8)
    half = (found.difference.high - found.difference.low) / 2
    assert half == pytest.approx(1.959963985 * abs((areas[1] - areas[0]) / z), rel=1e-8)
    same = delong.compare(y, first, 2 * first + 1)
    assert (same.difference.value, same.difference.low, same.p_value) == (0, None, 1.0)


def test_p_values_are_uniform_where_both_models_are_equal():
    rng = np.random.default_rng(12)
    p = []
    for _ in range(400):
        y = np.arange(120) % 3 == 0
        base = rng.normal(size=120) + y
        p.append(delong.compare(y, base + rng.normal(size=120), base + rng.normal(size=120)).p_value)
    # Kolmogorov's bound at 0.001
    assert np.abs(np.sort(p) - np.arange(1, 401) / 400).max() < 1.95 / math.sqrt(400)


def test_perfect_separation_has_an_interval():
    found = delong.interval([0] * 20 + [1] * 10, np.arange(30))
    assert (found.value, found.high, found.method) == (1.0, 1.0, "Newcombe, method 5")
    # the lower limit t solves (1 - t) ** 2 = z ** 2 * variance(t)
    t = found.low
    variance = t * (1 - t) * (1 + 14 * ((1 - t) / (2 - t) + t / (1 + t))) / 200
    assert (1 - t) ** 2 == pytest.approx(1.959963985**2 * variance, rel=1e-9)
    assert 0.8 < t < 0.9
    upside_down = delong.interval([1] * 20 + [0] * 10, np.arange(30))
    assert (upside_down.low, upside_down.high) == pytest.approx((0, 1 - found.low))
    single = delong.interval([0, 0, 0, 1], [1, 2, 4, 3])
    assert 0 < single.low < single.value < single.high < 1


def test_one_class_is_undefined():
    found = delong.interval([1, 1], [0.5, 0.7])
    assert (found.value, found.reason) == (None, "all 2 records are positive")
    assert delong.compare([0, 0], [1, 2], [2, 1]).p_value is None
    with pytest.raises(ValueError, match="all 2 records are negative"):
        delong.covariance([0, 0], [[1, 2]])
