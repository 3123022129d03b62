"""Distortions in numbers: what they do to known waves, what they leave alone, and that rows depend on seeds only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import config
from medjax.data.ecg.augment import Augmentation, augment
from medjax.data.ecg.distortions import (
    crop,
    distort,
    electrode_noise,
    lead_drop,
    mains,
    shift,
    time_warp,
    wander,
)
from medjax.data.ecg.electrodes import ELECTRODES
from medjax.data.ecg.leads import einthoven_error, goldberger_error
from medjax.data.ecg.signal import Preprocessing

P = Preprocessing()
RATE, SAMPLES = 250.0, 2500
T = np.arange(SAMPLES) / RATE
NAMES = ("time_warp", "shift", "crop", "amplitude", "wander", "mains", "electrode_noise", "lead_drop")
EVERYTHING = Augmentation(**dict.fromkeys(NAMES, 0.5))


@pytest.fixture(scope="module")
def windows():
    """16 windows that keep Einthoven's law, with a missing lead, a gap and padding here and there."""
    electrodes = np.random.default_rng(0).normal(size=(16, 9, SAMPLES)).astype(np.float32)
    signal = np.einsum("ce,ben->bcn", ELECTRODES, electrodes)
    valid = np.ones(signal.shape, bool)
    valid[3, 4] = False
    valid[5, :, 2000:] = False
    valid[7, 2, 100:300] = False
    return np.where(valid, signal, 0).astype(np.float32), valid, np.arange(1000, 1016, dtype=np.uint32) * 12345


def run(windows, config, p=P):
    """augment under jit: op by op it takes several times as long to compile."""
    changed, left = jax.jit(lambda *parts: augment(*parts, config, p))(*windows)
    return np.array(changed), np.array(left)


def many(distortion, x, count, numbers, **options):
    """A distortion of one window under `count` draws of its numbers: NumPy signal, valid [count, c, n]."""
    x = jnp.asarray(x, jnp.float32)
    u = np.random.default_rng(0).random((count, numbers), np.float32)
    keys = jax.random.split(jax.random.key(0), count)
    one = partial(distortion, x, jnp.ones(x.shape, bool), **options)
    return tuple(np.asarray(part) for part in jax.jit(jax.vmap(one))(u, keys))


def test_off_is_identity(windows):
    signal, valid, seeds = windows
    same = augment(signal, valid, seeds, Augmentation(), P)
    assert same[0] is signal
    assert same[1] is valid
    changed, left = distort(signal, valid, seeds, Augmentation(), P)
    assert np.array_equal(changed, signal)
    assert np.array_equal(left, valid)


def test_rows_that_are_spared_are_unchanged_and_as_many_as_said():
    signal = np.random.default_rng(0).normal(size=(2000, 2, 50)).astype(np.float32)
    valid = np.ones(signal.shape, bool)
    p = Preprocessing(leads=("I", "V2"), samples=50)
    changed, _ = run((signal, valid, np.arange(2000, dtype=np.uint32)), Augmentation(wander=0.3), p)
    spared = (changed == signal).all((1, 2))
    assert 0.7 - 0.04 < spared.mean() < 0.7 + 0.04  # 4 sd
    assert (changed != signal)[~spared].mean() > 0.99


def test_a_row_depends_on_its_seed_only(windows):
    signal, valid, seeds = windows
    compiled = jax.jit(lambda *parts: augment(*parts, EVERYTHING, P))
    whole = compiled(signal, valid, seeds)
    assert not np.array_equal(whole[0], signal)
    for rows in (slice(0, 4), slice(4, 8), slice(15, 3, -3)):
        part = compiled(signal[rows], valid[rows], seeds[rows])
        assert np.array_equal(part[1], whole[1][rows])
        np.testing.assert_allclose(part[0], whole[0][rows], atol=1e-4)
    again = compiled(signal, valid, seeds)
    assert np.array_equal(again[0], whole[0])
    other = compiled(signal, valid, seeds + 1)
    assert not np.array_equal(other[0], whole[0])


def test_what_is_not_valid_stays_so_and_zero(windows):
    _, valid, _ = windows
    sure = Augmentation(**dict.fromkeys(NAMES, 1.0))
    changed, left = run(windows, sure)
    assert (changed[~left] == 0).all()
    assert np.isfinite(changed).all()
    assert not left[3, 4].any()
    assert left.any((1, 2)).all()
    assert changed.dtype == np.float32
    noisy = Augmentation(wander=1.0, mains=1.0, electrode_noise=1.0, amplitude=1.0)
    changed, left = run(windows, noisy)
    assert np.array_equal(left, valid)
    assert (changed[~valid] == 0).all()


def test_noise_at_electrodes_keeps_einthoven(windows):
    signal, _, seeds = windows
    valid = np.ones(signal.shape, bool)
    whole = np.einsum("ce,ben->bcn", ELECTRODES, np.random.default_rng(1).normal(size=(16, 9, SAMPLES)))
    noisy = Augmentation(wander=1.0, mains=1.0, electrode_noise=1.0, time_warp=1.0)
    changed, left = run((whole.astype(np.float32), valid, seeds), noisy)
    changed[~left] = np.nan
    assert max(einthoven_error(row) for row in changed) < 1e-5
    assert max(goldberger_error(row) for row in changed) < 1e-5


def test_time_warp_of_a_sine():
    """A warped sine is a sine of the warped time, which runs between 1 - share and 1 + share of its speed."""
    wave = np.stack([np.sin(2 * np.pi * 5 * T), np.cos(2 * np.pi * 5 * T)])
    warped, valid = many(time_warp, wave, 60, 3, share=0.1)
    assert valid.all()
    np.testing.assert_allclose((warped**2).sum(1), 1, atol=2e-3)
    phase = np.unwrap(np.arctan2(warped[:, 0], warped[:, 1]), axis=-1) / (2 * np.pi * 5)  # source time, s
    np.testing.assert_allclose(phase[:, [0, -1]], np.tile(T[[0, -1]], (60, 1)), atol=1e-3)
    speed = np.gradient(phase, axis=-1) * RATE
    assert speed.min() > 0.89
    assert speed.max() < 1.11
    largest = np.abs(speed[:, 20:-20] - 1).max(-1)
    assert largest.max() > 0.09
    assert largest.min() < 0.05
    # the speed's deviation is one sine of 1 to 3 turns
    spectrum = np.abs(np.fft.rfft(speed - 1, axis=-1))
    assert set(spectrum.argmax(-1)) == {1, 2, 3}
    turns = (spectrum[:, 1:4] ** 2).max(-1) / (spectrum**2).sum(-1)
    assert turns.min() > 0.98


def test_shift_moves_and_lays_bare():
    x = np.tile(np.arange(1.0, 101.0), (3, 1))
    moved, valid = many(shift, x, 300, 1, samples=30)
    by = []
    for row, real in zip(moved, valid, strict=True):
        first = int(np.argmax(real[0]))
        d = first if first else -int((~real[0]).sum())
        expected = np.arange(1, 101) - d
        assert np.array_equal(row[:, real[0]], np.tile(expected, (3, 1))[:, real[0]])
        assert real.sum() == 3 * (100 - abs(d))
        by.append(d)
    assert (min(by), max(by)) == (-30, 30)


def test_crop_keeps_one_stretch():
    x = np.ones((2, 200))
    _, valid = many(crop, x, 400, 2, kept=0.4)
    kept = valid.sum(-1)
    assert (kept[:, 0] == kept[:, 1]).all()
    assert 80 <= kept.min() < 90
    assert 190 < kept.max() <= 200
    assert (np.abs(np.diff(valid[:, 0].astype(int), axis=-1)).sum(-1) <= 2).all()  # one stretch
    assert valid[:, 0, 0].any()
    assert valid[:, 0, -1].any()


@pytest.mark.parametrize("hz", [0.5, 0.3])
def test_wander_is_slow_and_of_the_stated_amplitude(hz):
    n = 25000  # 100 s, to tell frequencies apart
    drift, valid = many(wander, np.zeros((9, n)), 30, 90, leads=jnp.eye(9), rate=RATE, mv=0.2, hz=hz)
    assert valid.all()
    peak = np.abs(drift).max(-1)
    assert peak.max() <= 0.2
    assert peak.max() > 0.17
    assert peak.mean() == pytest.approx(0.097, abs=0.015)  # uniform amplitudes; three sines seldom meet exactly
    power = np.abs(np.fft.rfft(drift * np.hanning(n), axis=-1)) ** 2
    hertz = np.fft.rfftfreq(n, 1 / RATE)
    assert power[..., hertz > hz + 0.03].sum() / power.sum() < 1e-4
    assert power[..., hertz > 0.8 * hz].sum() / power.sum() > 0.05


def test_mains_hum():
    hum, _ = many(mains, np.zeros((9, SAMPLES)), 60, 20, leads=jnp.eye(9), rate=RATE, mv=0.05)
    assert 0.045 < np.abs(hum).max() <= 0.05
    power = (np.abs(np.fft.rfft(hum * np.hanning(SAMPLES), axis=-1)) ** 2).sum(1)
    hertz = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    near = np.minimum(np.abs(hertz - 50), np.abs(hertz - 60)) <= 0.5
    assert (power[:, near].sum(-1) / power.sum(-1)).min() > 0.999
    highest = hertz[power.argmax(-1)]
    assert 15 <= (highest > 55).sum() <= 45
    np.testing.assert_allclose(highest, np.where(highest > 55, 60, 50), atol=0.21)


def test_electrode_noise_is_white_and_of_the_stated_size():
    noise, _ = many(electrode_noise, np.zeros((9, SAMPLES)), 60, 9, leads=jnp.eye(9), mv=0.03)
    sd = noise.std(-1)
    assert 0.028 < sd.max() < 0.031
    assert abs(sd.mean() - 0.015) < 0.002
    scaled = noise / sd[..., None]
    assert np.abs((scaled[..., 1:] * scaled[..., :-1]).mean(-1)).max() < 0.1
    # V1 sees its own electrode and a third of each of three others
    lead, _ = many(electrode_noise, np.zeros((1, 100)), 2000, 9, leads=jnp.asarray(ELECTRODES[6:7]), mv=0.03)
    assert np.sqrt((lead**2).mean()) == pytest.approx(0.03 * np.sqrt((1 + 3 / 9) / 3), rel=0.05)


def test_amplitude_of_each_lead(windows):
    signal, _, seeds = windows
    valid = np.ones(signal.shape, bool)
    changed, _ = run((signal + 1, valid, seeds), Augmentation(amplitude=1.0, amplitude_share=0.3))
    gains = changed / (signal + 1)
    np.testing.assert_allclose(gains, np.broadcast_to(gains[..., :1], gains.shape), rtol=1e-4)
    drawn = gains[..., 0]
    assert 0.7 <= drawn.min() < 0.71
    assert 1.29 < drawn.max() <= 1.3
    assert len(np.unique(drawn.round(5))) > 180


@pytest.mark.parametrize("there", [12, 4, 1, 0])
def test_lead_drop_leaves_one(there):
    v = jnp.zeros((12, 10), bool).at[:there, 3:].set(True)
    u = np.random.default_rng(0).random((400, 13), np.float32)
    x, left = jax.jit(jax.vmap(lambda u: lead_drop(jnp.ones((12, 10)), v, u, None, most=6)))(u)
    assert (x == 1).all()
    left = np.asarray(left)
    assert not (left & ~np.asarray(v)).any()
    assert ((left == np.asarray(v)).all(-1) | ~left.any(-1)).all()  # whole leads
    dropped = there - left.any(-1).sum(-1)
    expected = set(range(1, 7)) if there == 12 else {1, 2, 3} if there == 4 else {0}
    assert set(dropped.tolist()) == expected
    if there > 1:
        assert left.any((0, 2))[:there].all()
        assert not left.any(-1).all(0)[:there].any()  # no lead is safe


def test_as_a_section_of_a_configuration():
    loaded = config.load(Augmentation, None, {"wander": "0.5", "lead_drop_most": "3"})
    assert loaded == Augmentation(wander=0.5, lead_drop_most=3)
    assert loaded.on
    assert not Augmentation(wander_mv=3.0).on


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": 1.5}, r"shift: got 1.5, expected a probability from 0 to 1; 0 is off"),
        ({"time_warp_share": 1.0}, r"time_warp_share: got 1.0, expected a share between 0 and 1"),
        (
            {"wander_mv": 0.0},
            r"wander_mv: got 0.0, expected a number above 0; to turn it off, set its probability wander",
        ),
        ({"electrode_noise_mv": -1.0}, r"electrode_noise_mv: .* probability electrode_noise to 0"),
        ({"crop_kept": 0.0}, r"crop_kept: got 0.0, expected a share above 0"),
        ({"lead_drop_most": 0}, r"lead_drop_most: got 0, expected at least 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**values)
