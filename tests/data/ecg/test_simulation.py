"""Simulated patients: the laws of the leads, known effects in the trace, and an AUROC that nothing exceeds."""

import csv

import numpy as np
import pytest
import wfdb
from scipy.signal import find_peaks
from scipy.stats import norm, rankdata

from medjax.data.ecg.leads import LEADS, einthoven_error, goldberger_error
from medjax.data.ecg.signal import Preprocessing, prepare
from medjax.data.ecg.simulation import (
    EF,
    LOW_EF,
    NOTICE,
    Patient,
    Simulation,
    best_age_error,
    best_auroc,
    draw_patient,
    optimal_score,
    records,
    simulate,
    write,
)

CONFIG = Simulation()
QUIET = Simulation(noise_mv=0.0, wander_mv=0.0)


def auroc(low, score):
    """AUROC by ranks, and its standard error (Hanley and McNeil, Radiology 143 (1982) 29)."""
    ranks, n1, n0 = rankdata(score), int(low.sum()), int((~low).sum())
    area = (ranks[low].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n1 - 1) * (q1 - area**2) + (n0 - 1) * (q2 - area**2)
    return area, np.sqrt(variance / (n1 * n0))


@pytest.fixture(scope="module")
def patients():
    return [draw_patient(number, 7, CONFIG) for number in range(6000)]


def patient(features=(0, 0, 0), age_features=(0, 0), heart_rate_bpm=60.0, sex="male"):
    """A patient of the given features, and of nothing else that is special."""
    return Patient(
        0, 60.0, 60.0, sex, np.array(features, float), np.array(age_features, float), heart_rate_bpm, 0, 0, 1
    )


def test_optimal_score_reaches_the_best_auroc_within_its_interval(patients):
    low = np.array([p.ef for p in patients]) <= 40
    features = np.stack([p.features for p in patients])
    area, error = auroc(low, optimal_score(features, CONFIG))
    assert abs(area - best_auroc(CONFIG)) < 2.6 * error  # 99 %
    assert 0.88 < best_auroc(CONFIG) < 0.95
    for weights in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 1]):  # any other score is worse
        assert auroc(low, features @ weights)[0] < area - 2 * error


def test_score_ranks_as_the_likelihood_ratio_does(patients):
    """The likelihood ratio of the features, by summing over a large sample of EF, is a rising function of the score."""
    ef = np.array([p.ef for p in patients])
    features = np.stack([p.features for p in patients[:300]])
    severity = (60 - ef) / 10
    likelihood = norm.pdf(features[:, None] - severity[:, None] * np.array(CONFIG.effects)).prod(-1)
    ratio = likelihood[:, ef <= 40].mean(1) / likelihood[:, ef > 40].mean(1)
    order = np.argsort(optimal_score(features, CONFIG))
    assert (np.diff(ratio[order]) > 0).all()


def test_best_auroc_in_known_cases():
    for threshold in (40.0, 50.0):
        weak = Simulation(effects=(1e-6, 0.0, 0.0), threshold=threshold)
        assert best_auroc(weak) == pytest.approx(0.5, abs=1e-5)
        assert best_auroc(Simulation(effects=(500.0, 0.0, 0.0), threshold=threshold)) > 0.999
    # only the sum of squares counts
    assert best_auroc(Simulation(effects=(0.6, 0.0, 0.8))) == pytest.approx(best_auroc(Simulation(effects=(0, 1.0, 0))))


def test_best_age_error(patients):
    """The posterior mean, which is nearly the median, comes as near as the integral says."""
    age = np.array([p.age_years for p in patients[:3000]])
    b = np.array(CONFIG.age_effects)
    seen = 60 + 10 * np.stack([p.age_features for p in patients[:3000]]) @ b / (b @ b)
    tau = 10 / np.sqrt(b @ b)
    weight = norm.pdf(seen[:, None], age[None, :1500], tau)
    mean = weight @ age[:1500] / weight.sum(1)
    error = np.abs(mean - age)
    assert error.mean() == pytest.approx(best_age_error(CONFIG), abs=2.6 * error.std() / np.sqrt(len(age)))
    assert best_age_error(Simulation(age_effects=(1e-6, 0))) == pytest.approx(
        np.abs(age - np.median(age)).mean(), abs=0.3
    )


def test_ef_age_and_sex_are_independent(patients):
    columns = np.array(
        [[p.ef, p.age_years, p.sex == "male", p.heart_rate_bpm, p.frontal_degrees, p.gain] for p in patients]
    )
    correlation = np.corrcoef(columns.T)
    correlation[2, 5] = correlation[5, 2] = 0  # sex and gain belong together
    assert np.abs(correlation - np.eye(6)).max() < 4.5 / np.sqrt(len(patients))
    ef, age = columns[:, 0], columns[:, 1]
    assert 10 <= ef.min() < 15
    assert 0.10 < (ef <= 40).mean() < 0.15
    assert age.min() >= 18
    assert age.max() <= 95
    gains = [np.mean(np.log(columns[columns[:, 2] == sex, 5])) for sex in (0, 1)]
    assert gains[0] - gains[1] == pytest.approx(np.log(0.85), abs=0.02)


def test_laws_of_the_leads():
    for record in records(8, 1, CONFIG):
        assert record.signal.shape == (12, 5000)
        assert einthoven_error(record.signal) < 1e-6
        assert goldberger_error(record.signal) < 1e-6
    trace = simulate(draw_patient(3, 1, CONFIG), 1, CONFIG)
    assert einthoven_error(trace) < 1e-12
    assert goldberger_error(trace) < 1e-12


def test_seed_patient_and_visit_decide():
    first, again = (list(records(3, 5, CONFIG)) for _ in range(2))
    assert all(np.array_equal(a.signal, b.signal) for a, b in zip(first, again, strict=True))
    (alone,) = records(1, 5, CONFIG, first=2)
    assert alone.id == first[2].id == "sim000002"
    assert np.array_equal(alone.signal, first[2].signal)
    other = next(iter(records(1, 6, CONFIG)))
    assert other.patient != first[0].patient
    assert not np.array_equal(other.signal, first[0].signal)
    visits = list(records(2, 5, CONFIG, visits=2))
    assert [v.id for v in visits] == ["sim000000_0", "sim000000_1", "sim000001_0", "sim000001_1"]
    assert len({v.patient for v in visits}) == 2
    assert visits[0].labels == visits[1].labels == first[0].labels
    assert not np.array_equal(visits[0].signal, visits[1].signal)


def beat(p):
    """The trace around the second R peak, -0.25 to 0.5 s in lead rows."""
    trace = simulate(p, 0, QUIET)
    peak = 400 + int(np.argmax(trace[1, 400:1000]))
    return trace[:, peak - 125 : peak + 250]


def width(row, level=0.5):
    """Samples above a share of the peak, by straight lines between samples."""
    return (
        float((np.interp(np.arange(0, len(row) - 1, 0.01), np.arange(len(row)), row) > level * row.max()).sum()) / 100
    )


def test_features_change_the_waveform_as_said():
    normal = beat(patient())
    qrs, t_wave, p_wave = slice(100, 150), slice(200, 330), slice(0, 70)
    v5, ii, v1 = LEADS.index("V5"), LEADS.index("II"), LEADS.index("V1")
    for z in (-1.0, 1.0, 2.0):
        wide = beat(patient(features=(z, 0, 0)))
        assert width(wide[ii, qrs]) / width(normal[ii, qrs]) == pytest.approx(np.exp(0.12 * z), rel=0.02)
        small = beat(patient(features=(0, z, 0)))
        assert small[v5, qrs].max() / normal[v5, qrs].max() == pytest.approx(0.8**z, rel=0.02)
        assert np.abs(small[:9] - normal[:9]).max() < 1e-3  # V4 to V6 only
        flat = beat(patient(features=(0, 0, z)))
        assert flat[ii, t_wave].max() / normal[ii, t_wave].max() == pytest.approx(0.75**z, rel=0.02)
        assert np.abs(flat[v1, qrs] - normal[v1, qrs]).max() < 0.01
        long = beat(patient(age_features=(0, z)))
        assert width(long[ii, p_wave]) / width(normal[ii, p_wave]) == pytest.approx(np.exp(0.1 * z), rel=0.03)
        turned = beat(patient(age_features=(z, 0)))
        angles = [
            np.degrees(np.arctan2(b[LEADS.index("aVF"), 125] * 2 / np.sqrt(3), b[0, 125])) for b in (normal, turned)
        ]
        assert angles[1] - angles[0] == pytest.approx(-10 * z, abs=0.5)


@pytest.mark.parametrize("rate", [50.0, 60.0, 110.0])
def test_heart_rate(rate):
    trace = simulate(patient(heart_rate_bpm=rate), 0, Simulation(noise_mv=0.0, wander_mv=0.0, seconds=60.0))[1]
    above = trace > 0.6 * trace.max()
    assert (np.diff(above.astype(int)) == 1).sum() == pytest.approx(rate, abs=2)


@pytest.mark.slow
def test_a_plain_detector_on_the_traces_comes_near():
    """Ridge regression of EF on the mean beat: below the optimal score on the same patients, by less than 0.03."""
    train, everyone = 2000, 3000
    beats, ef = [], []
    for record in records(everyone, 11, CONFIG):
        signal, _ = prepare(record, Preprocessing(notch="none"))
        steep = np.convolve((np.gradient(signal, axis=-1) ** 2).sum(0), np.ones(25) / 25, "same")
        peaks, _ = find_peaks(steep, height=0.4 * steep.max(), distance=70)
        peaks = [i - 20 + int(np.abs(signal[1, i - 20 : i + 20]).argmax()) for i in peaks if 100 <= i < 2350]
        beats.append(np.mean([signal[:, i - 60 : i + 100] for i in peaks], 0).ravel())
        ef.append(record.labels[EF])
    x, low = np.array(beats), np.array(ef) <= 40
    x /= np.sqrt((x**2).mean(1, keepdims=True))
    x -= x[:train].mean(0)
    _, sizes, axes = np.linalg.svd(x[:train], full_matrices=False)
    z = x @ axes[:40].T / (sizes[:40] / np.sqrt(train))
    z = np.concatenate([z, z[:, :12] ** 2, np.ones((everyone, 1))], 1)
    weights = np.linalg.solve(z[:train].T @ z[:train] + 20 * np.eye(z.shape[1]), z[:train].T @ -np.array(ef)[:train])
    features = np.stack([draw_patient(number, 11, CONFIG).features for number in range(train, everyone)])
    optimal, _ = auroc(low[train:], optimal_score(features, CONFIG))
    assert optimal - 0.03 < auroc(low[train:], (z @ weights)[train:])[0] < optimal + 0.005


def test_files_say_what_they_are(tmp_path):
    folder = write(tmp_path / "export", 4, 3, CONFIG, visits=2)
    made = list(records(4, 3, CONFIG, visits=2))
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", EF, LOW_EF]
    with (folder / "ecg_files.csv").open(encoding="utf-8") as file:
        told = {row["file"]: row for row in csv.DictReader(file)}
    for row, record in zip(rows, made, strict=True):
        assert (row["id"], float(row[EF]), float(row[LOW_EF])) == (record.id, *record.labels.values())
        assert told[f"{record.id}.hea"]["patient"] == record.patient
        read = wfdb.rdrecord(str(folder / record.id))
        np.testing.assert_allclose(read.p_signal.T, record.signal, atol=1e-6)
        assert read.sig_name == list(LEADS)
        assert (read.fs, read.units) == (500, ["mV"] * 12)
        assert read.comments == [f"Age: {record.age_years}", f"Sex: {record.sex.capitalize()}", NOTICE]
        digital = wfdb.rdrecord(str(folder / record.id), physical=False)
        assert digital.checksum == digital.calc_checksum()
    assert "Simulation" in NOTICE
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv"] * 2 + [".dat"] * 8 + [".hea"] * 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reduced_share": 1.0}, r"reduced_share: got 1.0, expected a share between 0 and 1"),
        ({"threshold": 90.0}, r"threshold: got 90.0, expected an EF between 10 and 80 %"),
        ({"effects": (0.5, 0.5)}, r"effects: got \(0.5, 0.5\), expected 3 numbers"),
        ({"age_effects": (0.0, 0.0)}, r"age_effects: got \(0.0, 0.0\), expected 2 numbers, not all of them 0"),
        ({"sampling_rate_hz": 50.0}, r"sampling_rate_hz: got 50.0 for 10.0 s, expected 100 or more"),
        ({"noise_mv": -1.0}, r"noise_mv: got -1.0 and wander_mv=0.05, expected 0 or more"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Simulation(**values)
