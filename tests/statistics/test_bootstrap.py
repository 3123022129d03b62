"""The bootstrap by patient against closed forms and a plain loop."""

import math

import numpy as np
import pytest

from medjax.statistics.bootstrap import (
    PatientBootstrap,
    difference,
    patient_numbers,
    stratified_weights,
    weighted_mean,
    weighted_ratio,
)


def test_patients_are_numbered_and_the_unknown_ones_are_their_own():
    assert patient_numbers(["b", "a", None, "b", "", float("nan"), None], 7).tolist() == [0, 1, 2, 0, 3, 4, 5]
    assert patient_numbers([7, 7, 3], 3).tolist() == [0, 0, 1]
    assert patient_numbers(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="patients: got 2 entries, expected 3"):
        patient_numbers(["a", "b"], 3)


def test_mean_of_independent_records_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = PatientBootstrap(np.arange(400), resamples=20_000).estimate(weighted_mean(values))
    half = 1.959964 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert (found.method, found.reason) == ("bootstrap by patient", "")


def test_records_of_a_patient_go_together():
    # five equal records a patient: the interval is that of 80 patients, sqrt(5) times as wide as of 400 records
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 80), 5)
    by_patient = PatientBootstrap(np.repeat(np.arange(80), 5), resamples=20_000).estimate(weighted_mean(values))
    by_record = PatientBootstrap(np.arange(400), resamples=20_000).estimate(weighted_mean(values))
    assert by_patient.high - by_patient.low == pytest.approx(2 * 1.959964 * values.std() / math.sqrt(80), rel=0.03)
    ratio = (by_patient.high - by_patient.low) / (by_record.high - by_record.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.04)


def test_weights_are_those_of_a_plain_loop():
    patients = np.array([0, 0, 1, 2, 1, 3])
    weights = np.concatenate(list(PatientBootstrap(patients, resamples=50, seed=9).weights()))
    drawn = np.random.default_rng(9).integers(0, 4, size=(50, 4))
    plain = [[list(row).count(patient) for patient in patients] for row in drawn]
    assert weights.tolist() == plain


def test_resampling_in_chunks_changes_nothing_but_memory(monkeypatch):
    values, patients = np.arange(30.0), np.arange(30) // 2
    whole = PatientBootstrap(patients, seed=3).estimate(weighted_mean(values))
    monkeypatch.setattr("medjax.statistics.bootstrap._CHUNK", 170)
    assert PatientBootstrap(patients, seed=3).estimate(weighted_mean(values)) == whole
    assert PatientBootstrap(patients, seed=4).estimate(weighted_mean(values)) != whole


def test_a_difference_is_taken_on_the_same_resample():
    rng = np.random.default_rng(2)
    first = rng.normal(0, 10, 500)
    second = first + rng.normal(1, 0.1, 500)
    bootstrap = PatientBootstrap(np.arange(500), resamples=4000)
    found = bootstrap.estimate(difference(weighted_mean(second), weighted_mean(first)))
    gap = second - first
    assert found.value == pytest.approx(gap.mean(), abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * gap.std() / math.sqrt(500), rel=0.06)


def test_undefined_resamples_are_left_out_and_counted():
    # a share among two of ten records: with probability 0.8 ** 10 a resample holds neither
    among = np.array([1, 1] + [0] * 8)
    found = PatientBootstrap(np.arange(10), resamples=10_000).estimate(weighted_ratio([1, 0] + [0] * 8, among))
    assert found.value == 0.5
    left = int(found.reason.split()[0].replace(",", ""))
    assert left == pytest.approx(10_000 * 0.8**10, rel=0.1)
    assert found.reason.endswith("of 10,000 resamples, where it is not defined, were left out")
    nothing = PatientBootstrap(np.arange(4), resamples=10).estimate(weighted_ratio(np.ones(4), np.zeros(4)))
    assert (nothing.value, nothing.low, nothing.reason) == (None, None, "not defined on these records")
    single = PatientBootstrap(["a", "a"], resamples=10).estimate(weighted_mean([1.0, 2.0]))
    assert (single.value, single.low, single.reason) == (1.5, None, "one patient: no interval can be given")


def test_samples_that_keep_their_sizes(monkeypatch):
    monkeypatch.setattr("medjax.statistics.bootstrap._CHUNK", 700)
    chunks = list(stratified_weights([5, 30], 4000, 1))
    assert [part.shape for part in chunks[0]] == [(20, 5), (20, 30)]
    for number, size in enumerate((5, 30)):
        weights = np.concatenate([chunk[number] for chunk in chunks])
        assert weights.shape == (4000, size)
        assert set(weights.sum(1)) == {size}
        assert np.abs(weights.mean(0) - 1).max() < 0.08  # 5 standard errors
        values = np.arange(size)
        assert (weights @ values / size).std() == pytest.approx(values.std() / np.sqrt(size), rel=0.05)
    with pytest.raises(ValueError, match=r"got \[5, 0\] and 10, expected 1 or more"):
        next(stratified_weights([5, 0], 10))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="patients: got no record"):
        PatientBootstrap([])
    with pytest.raises(ValueError, match="resamples: got 0"):
        PatientBootstrap([1], resamples=0)
    with pytest.raises(ValueError, match="level: got 95"):
        PatientBootstrap([1], level=95)
