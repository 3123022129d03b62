"""The maths of augmentation: each distortion of one window, as a pure function of numbers drawn from 0 to 1.

A window is signal [c, n] float32 in mV and valid [c, n] bool. What reaches all leads from the body's surface is drawn
for the nine electrodes and projected onto the leads (data.ecg.electrodes).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from medjax.data.ecg.electrodes import ELECTRODES
from medjax.data.ecg.leads import LEAD_INDEX
from medjax.data.ecg.signal import Preprocessing

if TYPE_CHECKING:
    from medjax.data.ecg.augment import Augmentation

Window = tuple[jax.Array, jax.Array]
# (signal, valid, numbers drawn from 0 to 1, key for noise) -> signal, valid
Distortion = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Window]

_STREAM = 3  # of a row's seed; nn.masking and nn.encoder draw from others
_WAVES = 3  # sines of a wandering baseline
_SLOWEST_HZ = 0.05
_GRID_HZ = 0.2  # how far a grid strays
_MOST_TURNS = 3  # how often the heart rate rises and falls in a window


def distort(
    signal: jax.Array, valid: jax.Array, seeds: jax.Array, config: "Augmentation", preprocessing: Preprocessing
) -> Window:
    """`augment.augment`, where at least one distortion has a probability above 0."""
    rate, c = preprocessing.sampling_rate_hz, signal.shape[1]
    leads = jnp.asarray(ELECTRODES[[LEAD_INDEX[lead] for lead in preprocessing.leads]], jnp.float32)
    electrodes = leads.shape[1]
    # probability, how many numbers it draws, distortion
    in_order: tuple[tuple[float, int, Distortion], ...] = (
        (config.time_warp, 3, partial(time_warp, share=config.time_warp_share)),
        (config.shift, 1, partial(shift, samples=max(1, round(config.shift_s * rate)))),
        (config.crop, 2, partial(crop, kept=config.crop_kept)),
        (config.amplitude, c, partial(amplitude, share=config.amplitude_share)),
        (
            config.wander,
            electrodes * (3 * _WAVES + 1),
            partial(wander, leads=leads, rate=rate, mv=config.wander_mv, hz=config.wander_hz),
        ),
        (config.mains, 2 + 2 * electrodes, partial(mains, leads=leads, rate=rate, mv=config.mains_mv)),
        (config.electrode_noise, electrodes, partial(electrode_noise, leads=leads, mv=config.electrode_noise_mv)),
        (config.lead_drop, 1 + c, partial(lead_drop, most=config.lead_drop_most)),
    )
    counts = [count for _, count, _ in in_order]

    def one(x: jax.Array, v: jax.Array, seed: jax.Array) -> Window:
        noise, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STREAM))
        # all at once: each draw takes a good part of a second to compile
        u = jax.random.uniform(key, (len(counts) + sum(counts),))
        chances, drawn = u[: len(counts)], jnp.split(u[len(counts) :], np.cumsum(counts)[:-1])
        for number, (probability, _, distortion) in enumerate(in_order):
            if not probability:
                continue
            befallen = chances[number] < probability
            changed, left = distortion(x, v, drawn[number], noise)
            v = jnp.where(befallen, left, v)
            x = jnp.where(befallen, jnp.where(left, changed, 0.0), x)
        return x, v

    with jax.named_scope("augment"):
        return jax.vmap(one)(signal, valid, seeds)


def time_warp(x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, share: float) -> Window:
    """Time runs at 1 + s cos(2 pi m t / T + phase) of its speed: s up to share, m from 1 to 3. Ends stay in place.

    Between samples by Catmull-Rom cubics; a sample is valid where those on both sides are.
    """
    n = x.shape[-1]
    s, m, start = share * u[0], 1 + jnp.floor(_MOST_TURNS * u[1]), 2 * np.pi * u[2]
    place = jnp.arange(n, dtype=jnp.int32)
    angle = 2 * np.pi * m / (n - 1)
    ahead = s / angle * (jnp.sin(angle * place + start) - jnp.sin(start))  # samples
    before = jnp.clip(place + jnp.floor(ahead).astype(jnp.int32), 0, n - 2)
    between = jnp.clip(ahead + (place - before), 0, 1)  # by differences: float32 knows place 2500 to 1e-4 only
    a, b, c, d = (x[:, jnp.clip(before + i, 0, n - 1)] for i in (-1, 0, 1, 2))
    warped = b + between / 2 * (c - a + between * (2 * a - 5 * b + 4 * c - d + between * (3 * (b - c) + d - a)))
    return warped, v[:, before] & v[:, before + 1]


def shift(x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, samples: int) -> Window:
    """Move the window by up to so many samples either way; what is laid bare is not valid."""
    by = jnp.floor((2 * samples + 1) * u[0]).astype(jnp.int32) - samples
    source = jnp.arange(x.shape[-1]) - by
    inside = (source >= 0) & (source < x.shape[-1])
    return jnp.roll(x, by, -1), jnp.roll(v, by, -1) & inside


def crop(x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, kept: float) -> Window:
    """Leave one stretch of the window valid, of `kept` to all of its length."""
    n = x.shape[-1]
    stretch = jnp.ceil(n * (kept + (1 - kept) * u[0])).astype(jnp.int32)
    first = jnp.floor((n - stretch + 1) * u[1]).astype(jnp.int32)
    place = jnp.arange(n)
    return x, v & (place >= first) & (place < first + stretch)


def amplitude(x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, share: float) -> Window:
    """Multiply each lead by a gain from 1 - share to 1 + share."""
    return x * (1 + share * (2 * u[:, None] - 1)), v


def wander(
    x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, leads: jax.Array, rate: float, mv: float, hz: float
) -> Window:
    """Add slow sines below hz at each electrode, of mv together at most.

    leads  [c, 9] weights of the electrodes in each lead; here and below
    """
    u = u.reshape(leads.shape[1], 3 * _WAVES + 1, 1)
    slowest = min(_SLOWEST_HZ, hz)
    hertz = slowest + (hz - slowest) * u[:, :_WAVES]
    start = 2 * np.pi * u[:, _WAVES : 2 * _WAVES]
    weights = 0.1 + 0.9 * u[:, 2 * _WAVES : -1]
    t = jnp.arange(x.shape[-1]) / rate
    waves = weights / weights.sum(1, keepdims=True) * jnp.sin(2 * np.pi * hertz * t + start)
    return x + _project(leads, mv * u[:, -1] * waves.sum(1)), v


def mains(
    x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, leads: jax.Array, rate: float, mv: float
) -> Window:
    """Add hum of one frequency, 50 or 60 Hz or nearly so, of up to mv and of any phase at each electrode."""
    electrodes = leads.shape[1]
    hertz = jnp.where(u[0] < 0.5, 50.0, 60.0) + _GRID_HZ * (2 * u[1] - 1)
    start, size = 2 * np.pi * u[2 : 2 + electrodes, None], mv * u[2 + electrodes :, None]
    t = jnp.arange(x.shape[-1]) / rate
    return x + _project(leads, size * jnp.sin(2 * np.pi * hertz * t + start)), v


def electrode_noise(x: jax.Array, v: jax.Array, u: jax.Array, key: jax.Array, *, leads: jax.Array, mv: float) -> Window:
    """Add white noise at each electrode, of a standard deviation up to mv."""
    noise = jax.random.normal(key, (leads.shape[1], x.shape[-1]))
    return x + _project(leads, mv * u[:, None] * noise), v


def lead_drop(x: jax.Array, v: jax.Array, u: jax.Array, _: jax.Array, *, most: int) -> Window:
    """Take 1 to `most` of the leads that have valid samples away, but not the last one."""
    there = v.any(-1)
    dropped = jnp.minimum(1 + jnp.floor(most * u[0]).astype(jnp.int32), there.sum() - 1)
    rank = jnp.argsort(jnp.argsort(jnp.where(there, u[1:], 2.0)))
    return x, v & (rank >= dropped)[:, None]


def _project(leads: jax.Array, electrodes: jax.Array) -> jax.Array:
    """leads [c, 9], electrodes [9, n] -> [c, n] in full float32 on every device."""
    return jnp.einsum("ce,en->cn", leads, electrodes, precision="highest")
