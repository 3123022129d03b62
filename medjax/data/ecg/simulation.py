"""Simulated 12-lead ECGs in which the ejection fraction (EF) and age change the waveform in a known way.

No openly licensed recording comes with an EF. So that everything from files to a validated detector can be tried, and
held against a truth, patients are drawn whose best achievable AUROC is known. None of it is a recording of anybody.

    EF, age, sex          drawn independently of each other
    z_j = a_j x + e_j     three features of the waveform, x = (60 - EF) / 10, e_j standard normal, a_j the effects
                          QRS duration +12 %, QRS amplitude at V4-V6 -20 %, T amplitude -25 % for each unit of z_j
    u_j = b_j y + d_j     two more, y = (age - 60) / 10: frontal axis -10 degrees, P duration +10 % for each unit
    everything else       heart rate, axis, gain (0.85 in women), noise, wander: independent of EF and age

The trace is a function of z, u and things that know nothing of EF. So nothing read off it can tell more about EF than z
itself does (data processing inequality), and z tells through

    w = sum(a_j z_j) / sum(a_j^2)  =  x + normal noise of variance 1 / sum(a_j^2)

alone, which is sufficient for x. The likelihood ratio of "EF <= threshold" rises with w (normal noise has a monotone
likelihood ratio), so by the Neyman-Pearson lemma w has the best ROC curve, and

    best AUROC = E[ Phi((x1 - x0) / (tau sqrt 2)) ],  tau^2 = 1 / sum(a_j^2),  x1 of a low EF, x0 of another,

an integral over the distribution of EF. A detector that sees the traces may come near it, since the noise on them is
small, and cannot pass it but by chance.

The trace: beats are Gaussian waves P, Q, R, S, T of a dipole in space, seen by nine electrodes, from which the leads
follow; so Einthoven's law holds. Geometry and wave shapes are rough, made to look like an ECG and to carry z and u.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from medjax.config import field
from medjax.data.ecg.electrodes import ELECTRODES
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord

EF, LOW_EF = "simulated_ef", "simulated_low_ef"  # names of the labels
NOTICE = "Simulation: made by medjax.data.ecg.simulation, not a recording of any person"

_EF_RANGE, _PRESERVED, _REDUCED = (10.0, 80.0), (61.0, 6.0), (34.0, 8.0)  # per cent: limits, means and sds
_AGE_RANGE, _AGES = (18.0, 95.0), (60.0, 15.0)
_STEP = 0.05  # of the integrals, per cent of EF and years
_UNITS_PER_MV = 2000  # of files: whole microvolts in I and II make whole half microvolts in the derived leads

# dipole moment (left, down, front; mV), centre and width (s) of each wave, from the R peak on
_QRS = np.array([[-0.12, -0.06, 0.25, -0.026, 0.008], [0.95, 0.75, -0.25, 0, 0.011], [-0.2, -0.25, -0.45, 0.028, 0.01]])
_P = np.array([[0.08, 0.11, 0.03, -0.16, 0.020]])
_T = np.array([[0.16, 0.13, 0.08, 0.25, 0.045], [0.12, 0.10, 0.06, 0.30, 0.028]])  # two make it lean to the right
# direction in which each electrode of electrodes.NAMES sees the dipole; the limbs are Einthoven's triangle
_SEEN = np.array(
    [
        *[[-0.5, -0.289, 0], [0.5, -0.289, 0], [0, 0.577, 0]],
        *[[-0.45, 0, 0.9], [0.05, 0, 1.1], [0.5, 0.1, 1.0], [0.9, 0.2, 0.7], [1.1, 0.2, 0.3], [1.0, 0.2, -0.1]],
    ]
)
_NEAR_HEART = slice(6, 9)  # E4 to E6


@dataclass(frozen=True)
class Simulation:
    """How simulated patients and their ECGs are made."""

    reduced_share: float = field(0.15, help="share of patients drawn around an EF of 34 instead of 61")
    threshold: float = field(40.0, help="an EF at or below it counts as low, per cent")
    effects: tuple[float, ...] = field((0.5, 0.4, 0.4), help="of 10 points of EF on QRS duration, V4-V6 and T, in sd")
    age_effects: tuple[float, ...] = field((0.6, 0.5), help="of 10 years on axis and P duration, in sd")
    sampling_rate_hz: float = field(500.0, help="of the traces, Hz")
    seconds: float = field(10.0, help="length of a trace, s")
    noise_mv: float = field(0.01, help="typical white noise at an electrode, mV")
    wander_mv: float = field(0.05, help="typical baseline wander at an electrode, mV")

    def __post_init__(self) -> None:
        if not 0 < self.reduced_share < 1:
            raise ValueError(f"reduced_share: got {self.reduced_share}, expected a share between 0 and 1.")
        if not _EF_RANGE[0] < self.threshold < _EF_RANGE[1]:
            raise ValueError(f"threshold: got {self.threshold}, expected an EF between {_EF_RANGE[0]:g} and 80 %.")
        for name, count in (("effects", 3), ("age_effects", 2)):
            if len(getattr(self, name)) != count or not any(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {count} numbers, not all of them 0.")
        if not (self.sampling_rate_hz >= 100 and self.seconds * self.sampling_rate_hz >= 1):
            raise ValueError(
                f"sampling_rate_hz: got {self.sampling_rate_hz} for {self.seconds} s, expected 100 or more, which QRS "
                "complexes need, and at least one sample."
            )
        if self.noise_mv < 0 or self.wander_mv < 0:
            raise ValueError(f"noise_mv: got {self.noise_mv} and wander_mv={self.wander_mv}, expected 0 or more.")


@dataclass(frozen=True)
class Patient:
    """A simulated patient.

    ef, age_years, sex     what there is to be found out; EF in per cent
    features, age_features z [3] and u [2] of the module's text: what the waveform knows of EF and age
    heart_rate_bpm, frontal_degrees, horizontal_degrees, gain   of the heart and the body, independent of EF
    """

    number: int
    ef: float
    age_years: float
    sex: str
    features: np.ndarray
    age_features: np.ndarray
    heart_rate_bpm: float
    frontal_degrees: float
    horizontal_degrees: float
    gain: float


def draw_patient(number: int, seed: int, config: Simulation) -> Patient:
    """A patient; the same number and seed make the same one, however many there are."""
    random = np.random.default_rng([seed, number, 0])
    ef = _truncated(random, _REDUCED if random.random() < config.reduced_share else _PRESERVED, _EF_RANGE)
    age = _truncated(random, _AGES, _AGE_RANGE)
    sex = "female" if random.random() < 0.5 else "male"
    severity, decades = (60 - ef) / 10, (age - 60) / 10
    return Patient(
        number,
        ef,
        age,
        sex,
        features=np.array(config.effects) * severity + random.normal(size=3),
        age_features=np.array(config.age_effects) * decades + random.normal(size=2),
        heart_rate_bpm=float(np.clip(random.normal(72, 12), 45, 120)),
        frontal_degrees=float(random.normal(0, 8)),
        horizontal_degrees=float(random.normal(0, 8)),
        gain=float((0.85 if sex == "female" else 1.0) * np.exp(random.normal(0, 0.15))),
    )


def optimal_score(features: np.ndarray, config: Simulation) -> np.ndarray:
    """The score w by which nothing separates better. features [..., 3] -> [...], higher for a lower EF."""
    effects = np.array(config.effects)
    return features @ effects / (effects @ effects)


@lru_cache(maxsize=32)
def best_auroc(config: Simulation) -> float:
    """The AUROC for EF <= threshold that no detector exceeds in the long run, by the integral of the module's text."""
    from scipy.special import ndtr

    ef = np.arange(*_EF_RANGE, _STEP) + _STEP / 2
    share = config.reduced_share
    density = share * _density(ef, _REDUCED) + (1 - share) * _density(ef, _PRESERVED)
    low = ef <= config.threshold
    noise = np.sqrt(2 / np.sum(np.square(config.effects)))  # of the difference of two scores
    wins = ndtr((ef[None, ~low] - ef[low, None]) / 10 / noise)
    return float(density[low] @ wins @ density[~low] / (density[low].sum() * density[~low].sum()))


@lru_cache(maxsize=32)
def best_age_error(config: Simulation) -> float:
    """The mean absolute error in years that no estimate of age beats: that of the posterior median given u."""
    age = np.arange(*_AGE_RANGE, _STEP) + _STEP / 2
    prior = _density(age, _AGES)
    prior /= prior.sum()
    tau = 10 / np.sqrt(np.sum(np.square(config.age_effects)))  # years
    seen = np.linspace(age[0] - 6 * tau, age[-1] + 6 * tau, 1000)
    joint = prior[:, None] * np.exp(-0.5 * ((seen - age[:, None]) / tau) ** 2)  # [ages, seen]
    cumulative = np.cumsum(joint, 0)
    median = age[np.argmax(cumulative >= cumulative[-1] / 2, axis=0)]
    return float((joint * np.abs(age[:, None] - median)).sum() / joint.sum())


def simulate(patient: Patient, seed: int, config: Simulation, visit: int = 0) -> np.ndarray:
    """A trace of a patient, [12, samples] float64 in mV; other visits have other beats and noise."""
    random = np.random.default_rng([seed, patient.number, 1, visit])
    samples = round(config.seconds * config.sampling_rate_hz)
    t = np.arange(samples) / config.sampling_rate_hz
    beats, interval = _beats(random, patient, config.seconds)
    wide, near_heart, tall_t = np.exp(patient.features * [0.12, np.log(0.8), np.log(0.75)])
    axis, p_wide = patient.age_features
    turn = _rotation(patient.frontal_degrees - 10 * axis, patient.horizontal_degrees)
    seen = patient.gain * _sum(_SEEN, turn)
    local = np.ones((len(_SEEN), 1))
    local[_NEAR_HEART] = near_heart
    qt = np.sqrt(interval)  # Bazett
    electrodes = _sum(local * seen, _waves(t, beats, _QRS, wide, wide))
    electrodes += _sum(seen, _waves(t, beats, _P, 1.0, np.exp(0.1 * p_wide)))
    electrodes += _sum(tall_t * seen, _waves(t, beats, _T, qt, qt))
    electrodes += _drift(random, t, config.wander_mv) + random.uniform(0.5, 1.5) * config.noise_mv * random.normal(
        size=electrodes.shape
    )
    return _sum(ELECTRODES, electrodes)


def records(patients: int, seed: int, config: Simulation, *, first: int = 0, visits: int = 1) -> Iterator[EcgRecord]:
    """ECGs of patients `first` to `first + patients`, `visits` of each, labelled simulated_ef and simulated_low_ef."""
    for number in range(first, first + patients):
        patient = draw_patient(number, seed, config)
        for visit in range(visits):
            name = f"sim{number:06d}" + (f"_{visit}" if visits > 1 else "")
            yield EcgRecord(
                name,
                _whole_steps(simulate(patient, seed, config, visit)).astype(np.float32),
                config.sampling_rate_hz,
                ("measured",) * len(LEADS),
                age_years=round(patient.age_years, 1),
                sex=patient.sex,
                patient=f"simulated-{seed}-{number:06d}",
                device="simulation",
                source=f"{name}.hea",
                format="simulation",
                labels={EF: patient.ef, LOW_EF: float(patient.ef <= config.threshold)},
                notes=(NOTICE,),
            )


def write(folder: str | Path, patients: int, seed: int, config: Simulation, *, first: int = 0, visits: int = 1) -> Path:
    """Write simulated patients as WFDB files, as a hospital's export might lie there.

    folder  is made; it gets sim000000.hea and .dat …, labels.csv (id, simulated_ef, simulated_low_ef) and ecg_files.csv
            (file, patient, age, sex). Each header says that it is a simulation.
    returns folder
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "labels.csv").open("w", encoding="utf-8", newline="") as labels,
        (folder / "ecg_files.csv").open("w", encoding="utf-8", newline="") as files,
    ):
        label_rows, file_rows = csv.writer(labels), csv.writer(files)
        label_rows.writerow(["id", EF, LOW_EF])
        file_rows.writerow(["file", "patient", "age", "sex"])
        for record in records(patients, seed, config, first=first, visits=visits):
            _write_wfdb(folder, record)
            label_rows.writerow([record.id, record.labels[EF], int(record.labels[LOW_EF])])
            file_rows.writerow([record.source, record.patient, record.age_years, record.sex])
    return folder


def _write_wfdb(folder: Path, record: EcgRecord) -> None:
    """A header and a signal file of format 16. By hand: wfdb takes a second for ten headers."""
    digital = np.rint(record.signal * float(_UNITS_PER_MV)).astype("<i2")
    (folder / f"{record.id}.dat").write_bytes(digital.T.tobytes())
    lines = [f"{record.id} {len(LEADS)} {record.sampling_rate_hz:g} {record.samples}"]
    for lead, row in zip(LEADS, digital, strict=True):
        checksum = int(row.sum(dtype=np.int64)) % 65536
        lines.append(f"{record.id}.dat 16 {_UNITS_PER_MV}(0)/mV 16 0 {row[0]} {checksum} 0 {lead}")
    lines += [f"# Age: {record.age_years}", f"# Sex: {str(record.sex).capitalize()}", f"# {NOTICE}"]
    (folder / record.source).write_text("\n".join(lines) + "\n", encoding="ascii")


def _truncated(random: np.random.Generator, normal: tuple[float, float], limits: tuple[float, float]) -> float:
    while not limits[0] <= (drawn := random.normal(*normal)) <= limits[1]:
        pass
    return float(drawn)


def _density(x: np.ndarray, normal: tuple[float, float]) -> np.ndarray:
    """A normal distribution cut to the range of x, a sum of 1 over x."""
    density = np.exp(-0.5 * ((x - normal[0]) / normal[1]) ** 2)
    return density / density.sum()


def _beats(random: np.random.Generator, patient: Patient, seconds: float) -> tuple[np.ndarray, float]:
    """Times of the R peaks from a beat before the trace to one after it, and the mean interval, s."""
    interval = 60 / patient.heart_rate_bpm
    count = int(seconds / interval / 0.8) + 4
    breath = np.sin(2 * np.pi * 0.25 * interval * np.arange(count) + random.uniform(0, 2 * np.pi))
    intervals = interval * (1 + 0.03 * breath + np.clip(random.normal(0, 0.01, count), -0.03, 0.03))
    return np.cumsum(intervals) - interval * (1 + random.random()), interval


def _waves(t: np.ndarray, beats: np.ndarray, waves: np.ndarray, stretch: float, widen: float) -> np.ndarray:
    """Dipole moments [3, samples] of waves: their centres stretched away from the R peaks, their widths widened."""
    centres, widths = stretch * waves[:, 3, None], widen * waves[:, 4, None]
    between = (beats[1:] + beats[:-1]) / 2
    away = (
        t - centres - beats[np.searchsorted(between, t - centres)]
    )  # from the nearest wave; others are too far to see
    return _sum(waves[:, :3].T, np.exp(-0.5 * (away / widths) ** 2))


def _sum(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """weights [m, k] @ rows [k, samples], without the threads of BLAS, which cost more than such a product."""
    return np.einsum("mk,kn->mn", weights, rows)


def _rotation(frontal_degrees: float, horizontal_degrees: float) -> np.ndarray:
    """[3, 3]: the heart turned in the frontal plane (positive: downwards), after the horizontal one (to the front)."""
    frontal, horizontal = np.radians([frontal_degrees, horizontal_degrees])
    a, b, c, d = np.cos(frontal), np.sin(frontal), np.cos(horizontal), np.sin(horizontal)
    return _sum(np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]), np.array([[c, 0, -d], [0, 1, 0], [d, 0, c]]))


def _drift(random: np.random.Generator, t: np.ndarray, mv: float) -> np.ndarray:
    """Slow waves below 0.4 Hz at each electrode, [9, samples]."""
    hertz, start = random.uniform(0.05, 0.4, (9, 2, 1)), random.uniform(0, 2 * np.pi, (9, 2, 1))
    return mv * random.uniform(0, 1, (9, 1)) * np.sin(2 * np.pi * hertz * t + start).sum(1)


def _whole_steps(signal: np.ndarray) -> np.ndarray:
    """A trace in steps of half a microvolt, I and II in whole ones, so that the laws of the leads hold exactly."""
    rounded = np.rint(signal * _UNITS_PER_MV) / _UNITS_PER_MV
    rounded[:2] = np.rint(signal[:2] * 1000) / 1000
    rounded[2:6] = _sum(ELECTRODES[2:6, 1:3], rounded[:2])  # with RA at 0, LA and LL are I and II
    return rounded
