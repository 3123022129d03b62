"""Copies are found whatever was done to them; different recordings are left apart, of one patient too."""

import time

import numpy as np
import pytest
import scipy.signal
from made_records import made_record, made_signal

from medjax.data.ecg import duplicates
from medjax.data.ecg.duplicates import (
    CORRELATION,
    NEIGHBOURS,
    REACH,
    best_correlation,
    candidates,
    find_twins,
)
from medjax.data.ecg.fingerprint import fingerprint
from medjax.data.ecg.index import Facts
from medjax.data.ecg.storage import to_row

RATE = 500.0


def resampled(signal, rate):
    return scipy.signal.resample_poly(signal, int(rate), int(RATE), axis=1).astype(np.float32), rate


def filtered(signal):
    band = scipy.signal.butter(2, [0.67, 40], "band", fs=RATE, output="sos")
    return scipy.signal.sosfiltfilt(band, signal, axis=1).astype(np.float32), RATE


RNG = np.random.default_rng(7)
ALTERED = {
    "rescaled": lambda x: (2.5 * x, RATE),
    "rescaled lead by lead": lambda x: ((RNG.uniform(0.3, 3, (12, 1)) * x).astype(np.float32), RATE),
    "offset": lambda x: (x + RNG.normal(0, 1, (12, 1)).astype(np.float32), RATE),
    "250 Hz": lambda x: resampled(x, 250.0),
    "100 Hz": lambda x: resampled(x, 100.0),
    "rounded to 5 uV": lambda x: ((np.round(x / 0.005) * 0.005).astype(np.float32), RATE),
    "filtered": filtered,
    "noise of 20 uV": lambda x: ((x + RNG.normal(0, 0.02, x.shape)).astype(np.float32), RATE),
    "starts 0.5 s later": lambda x: (x[:, 250:], RATE),
    "starts 2 s later": lambda x: (x[:, 1000:], RATE),
    "first 7 s, at 250 Hz, doubled": lambda x: (lambda y, rate: (2 * y[:, :1750], rate))(*resampled(x, 250.0)),
}
LAGS = {"starts 0.5 s later": 0.5, "starts 2 s later": 2.0}


def stored(records):
    rows = [to_row(record, number=number) for number, record in enumerate(records)]
    return [Facts.of(number, row) for number, row in enumerate(rows)], rows


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_found_among_others(name):
    originals = [made_record(seed) for seed in range(12)]
    copies = []
    for record in originals[:6]:
        signal, rate = ALTERED[name](record.signal)
        copies.append(made_record(100, signal=signal, rate=rate, id=f"copy of {record.id}"))
    facts, rows = stored([*originals, *copies])
    twins = find_twins(facts, rows)
    assert sorted((pair.first, pair.second) for pair in twins.pairs) == [(i, 12 + i) for i in range(6)]
    assert all(twins.recording[i] == twins.recording[12 + i] == facts[i].waveform for i in range(6))
    assert len(set(twins.recording)) == 12
    for pair in twins.pairs:
        assert pair.lag_s == pytest.approx(LAGS.get(name, 0.0), abs=0.005)
        assert pair.correlation == 1.0 or not pair.exact


def test_exact_copies_are_told_without_comparing():
    facts, rows = stored([made_record(seed) for seed in (1, 2, 1, 1)])
    twins = find_twins(facts, rows)
    assert [(p.first, p.second, p.exact, p.correlation, p.lag_s) for p in twins.pairs] == [
        (0, 2, True, 1.0, 0.0),
        (0, 3, True, 1.0, 0.0),
    ]
    assert twins.recording[0] == twins.recording[2] == twins.recording[3] != twins.recording[1]


def test_another_stretch_of_the_same_heart_is_another_recording():
    for seed in range(4):
        long = made_signal(seed, seconds=40)
        parts = [made_record(i, signal=long[:, 5000 * i : 5000 * (i + 1)]) for i in range(4)]
        facts, rows = stored(parts)
        assert np.linalg.norm(facts[0].fingerprint - facts[3].fingerprint) < REACH  # they are compared
        twins = find_twins(facts, rows)
        assert twins.checked == 6
        assert twins.pairs == ()


def test_correlation_equals_a_plain_search_over_lags():
    """Against sums over the overlap at every lag, on signals that are already of the grid and the band."""
    band = scipy.signal.firwin(501, [4, 12], fs=250, pass_zero=False)
    long = scipy.signal.fftconvolve(np.random.default_rng(0).normal(0, 1, (12, 4000)), band[None], "valid", axes=1)
    first, second = long[:, :2000].astype(np.float32), long[:, 700:2500].astype(np.float32)
    found, lag = best_correlation(first, 250.0, second, 250.0)
    rows = [np.asarray(x, float)[[0, 1, 6, 7, 8, 9, 10, 11], 75:-75] for x in (first, second)]
    rows = [row / np.sqrt((row**2).sum(1, keepdims=True)) for row in rows]
    best = (-1.0, 0)
    for shift in range(-700, 1000):
        a, b = rows[0][:, max(shift, 0) :], rows[1][:, max(-shift, 0) :]
        n = min(a.shape[1], b.shape[1])
        if n >= 1650 // 2:
            a, b = a[:, :n], b[:, :n]
            best = max(best, (float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())), shift))
    assert best[1] == 700
    assert lag == pytest.approx(700 / 250)
    assert found == pytest.approx(best[0], abs=0.005)


def test_leads_that_are_missing_do_not_count():
    signal = made_signal(4)
    fewer = signal.copy()
    fewer[[6, 7]] = np.nan
    assert best_correlation(signal, RATE, fewer, RATE)[0] > 0.999
    only_two = np.full_like(signal, np.nan)
    only_two[:2] = signal[:2]
    assert best_correlation(signal, RATE, only_two, RATE) == (0.0, 0.0)
    assert not fingerprint(only_two, RATE).any()
    gaps = signal.copy()
    gaps[:, 1000:1100] = np.nan
    assert np.isfinite(fingerprint(gaps, RATE)).all()
    assert best_correlation(signal, RATE, gaps, RATE)[0] > CORRELATION - 0.05


def test_candidates_equal_all_pairs_within_reach():
    rng = np.random.default_rng(0)
    prints = rng.normal(0, 0.4, (300, 56)).astype(np.float32)
    prints[:40] = prints[100:140] + rng.normal(0, 0.03, (40, 56))
    prints[5] = 0  # too few leads
    places = [10 * i for i in range(300)]
    distance = np.linalg.norm(prints[:, None] - prints[None], axis=-1)
    expected = {(10 * i, 10 * j) for i in range(300) for j in range(i + 1, 300) if distance[i, j] <= REACH and i != 5}
    expected = {pair for pair in expected if 50 not in pair}
    found, crowded = candidates(prints, np.array(places))
    assert [tuple(pair) for pair in found.tolist()] == sorted(expected)
    assert (len(found), crowded) == (39, 0)


def test_the_search_is_not_quadratic():
    """Eight times the records take far less than 64 times as long."""
    rng = np.random.default_rng(0)
    spread = np.concatenate([np.full(8, 0.8), np.full(48, 0.15)])
    took = []
    candidates(rng.normal(0, 1, (100, 56)).astype(np.float32), np.arange(100))  # imports what it needs
    for count in (4000, 32000):
        prints = (rng.normal(0, 1, (count, 56)) * spread).astype(np.float32)
        start = time.process_time()
        candidates(prints, np.arange(count))
        took.append(time.process_time() - start)
    assert took[1] < 30 * took[0]


def test_checks_are_bounded_however_alike_records_are():
    prints = np.random.default_rng(0).normal(0, 0.01, (500, 56)).astype(np.float32)
    found, crowded = candidates(prints, np.arange(500))
    assert len(found) <= 500 * NEIGHBOURS
    assert crowded == 500
    nearest = np.linalg.norm(prints[:, None] - prints[None], axis=-1) + 9 * np.eye(500)
    pairs = {tuple(pair) for pair in found.tolist()}
    near = [tuple(sorted((i, int(j)))) for i, j in enumerate(nearest.argmin(1))]
    assert np.mean([pair in pairs for pair in near]) > 0.6  # the tree sees twelve of 56 axes that are worth the same


def test_processes_find_the_same_and_say_how_far_they_are(monkeypatch):
    monkeypatch.setattr(duplicates, "_FEW", 10)
    monkeypatch.setattr(duplicates, "_CHECKED_TOGETHER", 4)
    long = [made_signal(seed, seconds=40) for seed in range(3)]
    facts, rows = stored(
        [made_record(9 * i + j, signal=x[:, 1500 * j :][:, :5000]) for i, x in enumerate(long) for j in range(5)]
    )
    alone = find_twins(facts, rows)
    told = []
    together = find_twins(facts, rows, processes=2, progress=lambda done, total: told.append((done, total)))
    assert together == alone
    assert alone.checked >= 30
    assert len(alone.pairs) >= 10
    assert [total for _, total in told] == [alone.checked] * len(told)
    assert [done for done, _ in told] == [*range(4, alone.checked, 4), alone.checked]


def test_real_twins(shared_data):
    from medjax.data.ecg.readers import find_ecgs, read_ecg

    folder = shared_data / "ecg" / "cinc2021_sample" / "georgia"
    records = [record for path in find_ecgs(folder) for record in read_ecg(path)]
    facts, rows = stored(records)
    twins = find_twins(facts, rows)
    assert [(facts[p.first].id, facts[p.second].id, p.exact) for p in twins.pairs] == [("E07509", "E07510", True)]
