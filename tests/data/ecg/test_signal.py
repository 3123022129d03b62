"""Filters, resampling, gaps, windows and normalisation against closed forms and scipy's recursive filters."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from medjax import config
from medjax.data.ecg.leads import LEADS, einthoven_error
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import (
    Preprocessing,
    judged_windows,
    normalise,
    prepare,
    prepared_windows,
    window,
    window_starts,
    windows,
)
from medjax.data.ecg.simulation import Simulation, records

PLAIN = Preprocessing(high_pass_hz=0.0, notch="none")


def record(signal, rate=500.0, **more):
    """A record whose leads all hold a signal [samples], or the leads [12, samples]."""
    leads = np.broadcast_to(np.asarray(signal, np.float32), (12, np.shape(signal)[-1])).copy()
    status = tuple("missing" if np.isnan(row).all() else "measured" for row in leads)
    return EcgRecord("made", leads, rate, status, **more)


def times(rate, seconds):
    return np.arange(round(rate * seconds)) / rate


def tones(t):
    """Sines far below the Nyquist frequency of any rate tested; no DC, no drift."""
    return 0.8 * np.sin(2 * np.pi * 3 * t + 0.3) + 0.3 * np.cos(2 * np.pi * 11 * t) + 0.1 * np.sin(2 * np.pi * 28 * t)


@pytest.mark.parametrize("rate", [1000, 800, 500, 400, 360, 300, 257, 250, 240, 200, 128, 499.9, 333.333])
def test_resampling_gives_the_samples_of_the_signal_itself(rate):
    signal, valid = prepare(record(tones(times(rate, 10)), rate), PLAIN)
    assert signal.shape == valid.shape
    assert abs(signal.shape[1] - 2500) <= 1
    assert valid.all()
    inside = slice(100, 2400)
    assert np.abs(signal[0] - tones(np.arange(signal.shape[1]) / 250))[inside].max() < 5e-3


def test_resampling_to_a_rate_where_mains_would_fold_back():
    """60 Hz sampled at 100 Hz would look like 40 Hz."""
    t = times(500, 10)
    signal, _ = prepare(
        record(np.sin(2 * np.pi * 60 * t)), Preprocessing(sampling_rate_hz=100.0, high_pass_hz=0.0, notch="none")
    )
    assert signal.shape == (12, 1000)
    assert np.abs(signal[0, 50:-50]).max() < 0.02
    kept, _ = prepare(
        record(np.sin(2 * np.pi * 10 * t)), Preprocessing(sampling_rate_hz=100.0, high_pass_hz=0.0, notch="none")
    )
    assert np.abs(kept[0] - np.sin(2 * np.pi * 10 * np.arange(1000) / 100))[50:-50].max() < 5e-3


@pytest.mark.parametrize(("hertz", "order", "kind"), [(0.5, 2, "highpass"), (40.0, 4, "lowpass")])
def test_filter_equals_scipy_run_forwards_and_backwards(hertz, order, kind):
    """On the record's mirror images, which stand in for continuing it for ever; rate high enough for no warping."""
    noise = np.cumsum(np.random.default_rng(0).normal(size=(12, 3000)), -1)
    noise -= noise.mean(-1, keepdims=True)
    line = np.linspace(-1, 1, 3000)
    noise -= (noise @ line / (line @ line))[:, None] * line
    noise /= np.abs(noise).max()
    p = Preprocessing(
        sampling_rate_hz=1000.0,
        high_pass_hz=hertz if kind == "highpass" else 0.0,
        low_pass_hz=hertz if kind == "lowpass" else 0.0,
        notch="none",
    )
    signal, _ = prepare(record(noise, 1000.0), p)
    mirrored = np.pad(noise, ((0, 0), (6000, 6000)), mode="symmetric")
    sos = scipy.signal.butter(order, hertz, kind, fs=1000, output="sos")
    expected = scipy.signal.sosfiltfilt(sos, mirrored, axis=-1)[:, 6000:-6000]
    assert np.abs(signal - expected).max() < (2e-3 if kind == "lowpass" else 5e-5)


def test_notch_equals_scipy_run_forwards_and_backwards():
    noise = np.random.default_rng(1).normal(size=4000)
    line = np.linspace(-1, 1, 4000)
    noise -= noise.mean()
    noise -= noise @ line / (line @ line) * line
    signal, _ = prepare(record(noise, 1000.0), Preprocessing(sampling_rate_hz=1000.0, high_pass_hz=0.0, notch=50))
    b, a = scipy.signal.iirnotch(50, 30, fs=1000)
    expected = scipy.signal.filtfilt(b, a, np.pad(noise, 8000, mode="symmetric"))[8000:-8000]
    assert np.abs(signal[0] - expected).max() < 5e-3


@pytest.mark.parametrize(("hertz", "gain"), [(0.25, 1 / 17), (0.5, 0.5), (1.0, 16 / 17), (5.0, 1.0), (30.0, 1.0)])
def test_amplitude_and_phase_of_the_high_pass(hertz, gain):
    """A sine comes out at the closed form's amplitude, without any delay."""
    t = times(250, 40)
    signal, _ = prepare(record(np.sin(2 * np.pi * hertz * t), 250.0), Preprocessing(notch="none"))
    inside = slice(2500, -2500)
    sine, cosine = (2 * np.mean((signal[0] * wave(2 * np.pi * hertz * t))[inside]) for wave in (np.sin, np.cos))
    assert sine == pytest.approx(gain, abs=1e-3)
    assert cosine == pytest.approx(0, abs=1e-3)
    assert np.abs(signal[0] - gain * np.sin(2 * np.pi * hertz * t))[inside].max() < 2e-3


@pytest.mark.parametrize("mains", [50, 60])
@pytest.mark.parametrize("drift", [-0.2, 0.0, 0.2])
def test_notch_takes_mains_out_and_leaves_the_rest(mains, drift):
    """More than 20 dB at the frequency and as far from it as grids stray; ECG at 20 dB below changes by < 1 %."""
    t = times(500, 10)
    hum = np.sin(2 * np.pi * (mains + drift) * t)
    p = Preprocessing(sampling_rate_hz=500.0, high_pass_hz=0.0)
    left, _ = prepare(record(hum, mains_hz=mains), p)
    assert np.sqrt(np.mean(left[0, 500:-500] ** 2)) < 0.1 * np.sqrt(0.5)
    if drift == 0.0:
        assert np.abs(left[0, 1000:-1000]).max() < 0.01
    unseen, _ = prepare(record(hum), p)  # no hum was seen: nothing is taken out
    assert np.abs(unseen[0] - hum)[10:-10].max() < 0.01
    forced, _ = prepare(record(hum), Preprocessing(sampling_rate_hz=500.0, high_pass_hz=0.0, notch=mains))
    assert np.array_equal(forced, left)
    none, _ = prepare(
        record(hum, mains_hz=mains), Preprocessing(sampling_rate_hz=500.0, high_pass_hz=0.0, notch="none")
    )
    assert np.array_equal(none, unseen)
    kept, _ = prepare(record(tones(t), mains_hz=mains), p)
    assert np.abs(kept[0] - tones(t))[50:-50].max() < 0.01


def test_ends_of_a_record_are_nearer_to_the_longer_recording_than_by_scipy():
    """10 s cut out of 30 s: what is wrong at the ends is what the cut lost."""
    p = Preprocessing(sampling_rate_hz=500.0, notch="none")
    sections = scipy.signal.butter(2, 0.5, "highpass", fs=500, output="sos")
    ours, scipys = [], []
    for long in records(10, 3, Simulation(seconds=30.0, wander_mv=0.1)):
        whole = prepare(long, p)[0][:, 5000:10000]
        cut = replace(long, signal=long.signal[:, 5000:10000].copy())
        ours.append(prepare(cut, p)[0] - whole)
        scipys.append(scipy.signal.sosfiltfilt(sections, cut.signal, axis=-1) - whole)
    for part, factor in ((slice(0, 500), 0.8), (slice(500, 1000), 0.5), (slice(1000, 4000), 0.2)):
        rms = [np.sqrt(np.mean(np.square(errors)[..., part])) for errors in (ours, scipys)]
        assert rms[0] < factor * rms[1]
    assert rms[0] < 5e-4


def test_real_recordings_keep_einthoven_and_their_length(shared_data):
    """All that is done is the same for each lead and linear, so I + III stays II."""
    seen = set()
    for folder in ("cpsc", "ptb", "ptbxl", "chapman_ningbo", "cpsc_extra"):
        (made,) = read_ecg(min((shared_data / "ecg" / "cinc2021_sample" / folder).glob("*.hea")))
        signal, valid = prepare(made, Preprocessing(notch=50, low_pass_hz=40.0))
        seen.add(made.sampling_rate_hz)
        assert signal.shape == (12, np.ceil(made.duration_s * 250))
        assert valid.all()
        assert einthoven_error(signal) <= 1.5 * einthoven_error(made.signal) + 2e-5
        assert np.abs(signal.mean(-1)).max() < 1e-3
        assert 0.1 < np.abs(signal[1]).max() < 5
    assert seen == {500.0, 1000.0}


def test_dc_and_drift():
    t = times(250, 10)
    signal, _ = prepare(record(tones(t) + 7.0 + 0.3 * t, 250.0), Preprocessing(notch="none"))
    without, _ = prepare(record(tones(t), 250.0), Preprocessing(notch="none"))
    assert np.abs(signal - without).max() < 1e-5  # an electrode's offset of 7 mV and a straight drift leave no trace
    kept, _ = prepare(record(7.0 + 0.3 * t, 250.0), PLAIN)
    assert np.abs(kept[0] - 0.3 * (t - t.mean())).max() < 1e-5  # without a high-pass only DC goes
    low, _ = prepare(record(7.0 + 0.3 * t, 250.0), Preprocessing(high_pass_hz=0.0, low_pass_hz=20.0, notch="none"))
    assert np.abs(low - kept).max() < 1e-5


def test_gaps_and_missing_leads_do_not_spread():
    t = times(500, 10)
    whole = np.broadcast_to(tones(t), (12, 5000)).astype(np.float32)
    broken = whole.copy()
    broken[1, 2000:2051] = np.nan  # 0.1 s
    broken[4] = np.nan
    broken[5, :700] = np.nan
    broken[6, 1:] = np.nan
    p = Preprocessing(notch="none")
    signal, valid = prepare(record(broken), p)
    expected, _ = prepare(record(whole), p)
    assert np.isfinite(signal).all()
    untouched = [row for row in range(12) if row not in (1, 4, 5, 6)]
    assert np.array_equal(signal[untouched], expected[untouched])
    assert valid[untouched].all()
    assert not valid[4].any()
    at = np.arange(2500) * 2
    assert np.array_equal(valid[1], (at < 2000) | (at > 2050))
    assert np.array_equal(valid[5], at >= 700)
    assert np.array_equal(valid[6], at == 0)
    assert (signal[~valid] == 0).all()
    away = valid[1] & ((at < 1500) | (at > 2550))
    assert np.abs(signal[1] - expected[1])[away].max() < 0.02


def test_validity_between_samples():
    """At 257 Hz a new sample lies between two old ones, and both must be known."""
    noise = np.random.default_rng(0).normal(size=2570)
    known = np.random.default_rng(1).random(2570) > 0.2
    signal, valid = prepare(record(np.where(known, noise, np.nan), 257.0), Preprocessing(notch="none"))
    place = np.arange(signal.shape[1]) * 257 / 250
    expected = known[np.floor(place).astype(int)] & known[np.minimum(np.ceil(place), 2569).astype(int)]
    assert np.array_equal(valid[0], expected)


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("rate", [100.0, 257.0, 500.0])
def test_records_shorter_than_a_filter(samples, rate):
    noise = np.random.default_rng(samples).normal(size=samples)
    signal, valid = prepare(record(noise, rate), Preprocessing(low_pass_hz=40.0, notch=50))
    assert signal.shape[1] == -(-samples * 250 // int(rate))
    assert np.isfinite(signal).all()
    assert valid.all()
    assert np.abs(signal).max() < 4
    cut, real = windows(signal, valid, window_starts(signal.shape[1], 2500), 2500)
    assert cut.shape == (1, 12, 2500)
    assert real.sum() == 12 * signal.shape[1]


@pytest.mark.parametrize("rate", [257.0, 500.0])
@pytest.mark.parametrize("high_pass_hz", [0.5, 0.05])
def test_windows_of_a_long_record_are_those_of_the_whole(rate, high_pass_hz):
    """Though only a stretch of it is prepared: on wandering lines, with hum, gaps and a missing lead.

    At its ends the line that is taken off before filtering matters, and that is of the stretch.
    """
    generator = np.random.default_rng(3)
    t = times(rate, 600)
    leads = tones(t) + 0.5 * np.sin(2 * np.pi * 50 * t) + generator.normal(size=(12, len(t))).cumsum(-1) / 300
    leads[4] = np.nan
    leads[7, 20_000:20_500] = np.nan
    made = record(leads, rate, mains_hz=50)
    p = Preprocessing(leads=("II", "aVL", "V2"), high_pass_hz=high_pass_hz, samples=1000)
    whole, known = prepare(made, p)
    starts = [0, 4321, 75_000, whole.shape[1] - 1000, whole.shape[1] - 300]
    signal, valid = prepared_windows(made, p, starts)
    expected, real = windows(whole, known, starts, 1000)
    assert np.array_equal(valid, real)
    assert valid[0, 0].all()
    assert not valid[:, 1].any()
    assert valid[-1, 0].sum() == 300
    error = np.abs(signal - expected).max((1, 2))
    assert error[1:3].max() < 2e-4
    assert error.max() < 0.03
    assert np.abs(expected).max() > 0.5


def test_a_long_record_is_never_prepared_as_a_whole(monkeypatch):
    """An hour at 1 kHz: as many samples as a window and two margins of 15 s have, not 3,600,000."""
    made = record(np.zeros(3_600_000), 1000.0)
    prepared = []
    monkeypatch.setattr(
        "medjax.data.ecg.signal.prepare", lambda each, p: prepared.append(each.samples) or prepare(each, p)
    )
    prepared_windows(made, Preprocessing(), [0, 400_000])
    assert len(prepared) == 2
    assert max(prepared) <= 40_000 + 4


def test_windows_are_judged_where_a_patch_was_measured_throughout():
    valid = np.ones((4, 2, 30), bool)
    valid[0, :, ::10] = False  # every patch has a gap
    valid[1] = False
    valid[2, 0] = False
    valid[3, :, 5] = False
    assert judged_windows(valid, 10).tolist() == [False, False, True, True]


def test_leads_in_the_order_asked_for():
    t = times(250, 10)
    leads = np.stack([(i + 1) * tones(t) for i in range(12)])
    signal, _ = prepare(record(leads, 250.0), Preprocessing(leads=("V6", "II", "aVR"), high_pass_hz=0.0))
    for row, lead in zip(signal, ("V6", "II", "aVR"), strict=True):
        assert np.abs(row / (LEADS.index(lead) + 1) - tones(t)).max() < 1e-3


def test_the_record_is_left_as_it_was():
    leads = np.random.default_rng(0).normal(size=(12, 1000)).astype(np.float32)
    leads[2, 5:9] = np.nan
    made = record(leads, 250.0)
    prepare(made, Preprocessing())
    assert np.array_equal(made.signal, leads, equal_nan=True)


@pytest.mark.parametrize(
    ("n", "starts"),
    [
        (10, [0]),
        (100, [0]),
        (105, [2]),
        (106, [0, 6]),
        (150, [0, 50]),
        (200, [0, 100]),
        (260, [0, 80, 160]),
        (1000, [0, 450, 900]),
    ],
)
def test_windows_are_spread_evenly(n, starts):
    assert window_starts(n, 100) == starts
    whole = np.tile(np.arange(1, n + 1, dtype=np.float32), (12, 1))
    cuts, valid = windows(whole, np.ones(whole.shape, bool), starts, 100)
    assert [int(cut[0, 0]) - 1 for cut in cuts] == starts
    assert (valid.sum(-1) == min(n, 100)).all()


def test_window_crops_and_pads():
    whole, valid = np.arange(1, 6, dtype=np.float32)[None], np.array([[True, True, False, True, True]])
    for start, expected, real in [
        (1, [2, 3, 4], [True, False, True]),
        (-1, [0, 1, 2], [False, True, True]),
        (4, [5, 0, 0], [True, False, False]),
        (9, [0, 0, 0], [False] * 3),
        (-9, [0, 0, 0], [False] * 3),
    ]:
        cut, there = window(whole, valid, start, 3)
        assert cut.tolist() == [expected]
        assert there.tolist() == [real]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("kind", ["record", "lead", "fixed", "minmax", "none"])
@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_normalisation_by_its_definition(array, kind, clip):
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(4, 3, 200)).astype(np.float32) * [[1.0], [3.0], [0.2]] + 0.5
    valid = generator.random((4, 3, 200)) > 0.3
    valid[1, 2] = False
    valid[3] = False
    fixed = {"mean_mv": (0.1, 0.2, 0.3), "sd_mv": (1.0, 2.0, 3.0)} if kind == "fixed" else {}
    p = Preprocessing(leads=("I", "II", "V1"), normalisation=kind, clip_mv=clip, **fixed)
    expected = np.zeros(signal.shape)
    for row in range(4):
        clipped = np.clip(signal[row], -clip, clip) if clip else signal[row]
        every = clipped[valid[row]]
        for lead in range(3):
            there = valid[row, lead]
            x = clipped[lead][there].astype(np.float64)
            if not x.size:
                continue
            low, high = every.min(), every.max()
            expected[row, lead, there] = {
                "none": x,
                "record": (x - every.mean()) / every.std(),
                "lead": (x - x.mean()) / x.std(),
                "fixed": (x - (0.1, 0.2, 0.3)[lead]) / (1.0, 2.0, 3.0)[lead],
                "minmax": (x - low) / (high - low),
            }[kind]
    compiled = jax.jit(normalise, static_argnums=2) if array is jnp.asarray else normalise
    result = compiled(array(signal.astype(np.float32)), array(valid), p)
    assert isinstance(result, np.ndarray if array is np.asarray else jax.Array)
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.asarray(result), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["record", "lead", "minmax"])
def test_flat_leads_become_zero_and_gradients_stay_finite(kind):
    p = Preprocessing(leads=("I", "II"), normalisation=kind)
    flat = jnp.full((2, 50), 3.0).at[0, ::2].add(0 if kind != "lead" else 1.0)
    valid = jnp.ones((2, 50), bool)
    result = jax.jit(lambda x: normalise(x, valid, p))(flat)
    assert (result[1] == 0).all()
    if kind == "lead":
        np.testing.assert_allclose(result[0], np.tile([1.0, -1.0], 25), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x, mask: normalise(x, mask, p).sum()))
    for mask in (valid, jnp.zeros_like(valid)):
        assert np.isfinite(gradient(flat, mask)).all()


def test_through_json_and_configuration():
    p = Preprocessing(
        leads=("I", "II"), notch=60, normalisation="fixed", mean_mv=(0.0,), sd_mv=(0.5, 0.25), clip_mv=3.0, samples=9
    )
    assert Preprocessing.from_json(json.loads(json.dumps(p.to_json()))) == p
    assert Preprocessing.from_json(json.loads(json.dumps(Preprocessing().to_json()))) == Preprocessing()
    options = {"notch": "50", "leads": "I,II,V2", "high_pass_hz": "0", "normalisation": "lead"}
    loaded = config.load(Preprocessing, None, options)
    assert loaded == Preprocessing(notch=50, leads=("I", "II", "V2"), high_pass_hz=0.0, normalisation="lead")
    values = Preprocessing().to_json()
    del values["notch"]
    with pytest.raises(ValueError, match=r"preprocessing: gain, notch missing or unknown, expected exactly clip_mv, "):
        Preprocessing.from_json(values | {"gain": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling_rate_hz": 0.0}, r"sampling_rate_hz: got 0.0, expected a number above 0"),
        ({"samples": 0}, r"samples: got 0, expected at least 1"),
        ({"leads": ("I", "I")}, r"leads: got I I, expected different ones of I II III aVR"),
        ({"leads": ()}, r"leads: got , expected different ones"),
        ({"high_pass_hz": -1.0}, r"high_pass_hz: got -1.0, expected a number above 0, or 0 for none"),
        ({"low_pass_hz": 0.4}, r"low_pass_hz: got 0.4, expected more than high_pass_hz=0.5"),
        ({"notch": 55}, r"notch: got 55, expected one of auto, none, 50, 60"),
        ({"normalisation": "z"}, r"normalisation: got 'z', expected one of record, lead, fixed, minmax, none"),
        ({"mean_mv": (0.0,)}, r"mean_mv: got 1 numbers for 12 leads and normalisation=record, expected none"),
        ({"normalisation": "fixed", "mean_mv": (0.0,)}, r"sd_mv: got 0 numbers for 12 leads .* one for all leads"),
        ({"normalisation": "fixed", "mean_mv": (0.0,), "sd_mv": (0.0,)}, r"sd_mv: got 0.0, expected a number above 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**values)
