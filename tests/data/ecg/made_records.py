"""Made ECGs: beats of a random shape in each lead, in whole microvolts, that obey Einthoven and Goldberger."""

import numpy as np

from medjax.data.ecg.leads import derive
from medjax.data.ecg.record import EcgRecord

MEASURED = ("measured",) * 12


def made_signal(seed, *, seconds=10.0, rate=500.0):
    """[12, samples] float32, mV; another seed is another heart, beats are never alike in time."""
    rng = np.random.default_rng(seed)
    shape = rng.normal(0, 1, (8, 5))  # height of each wave in I, II, V1 to V6
    middle, width = np.array([-0.18, -0.03, 0.0, 0.03, 0.25]), np.array([0.03, 0.01, 0.012, 0.012, 0.05])
    beats = np.cumsum(rng.uniform(0.6, 1.1, 400)) - 1.0
    time = np.arange(round(seconds * rate)) / rate
    near = beats[(beats > -1) & (beats < seconds + 1)]
    waves = np.exp(-0.5 * ((time - near[:, None, None] - middle[:, None]) / width[:, None]) ** 2)
    heights = 1 + 0.05 * rng.normal(0, 1, (len(beats), 5))[: len(near)]
    eight = np.einsum("cw,nw,nwt->ct", shape, heights, waves) + 0.01 * rng.normal(0, 1, (8, len(time)))
    microvolts = np.round(1000 * eight)
    signal = np.full((12, len(time)), np.nan, np.float32)
    signal[[0, 1, 6, 7, 8, 9, 10, 11]] = microvolts / 1000
    return derive(signal)


def made_record(seed, *, seconds=10.0, rate=500.0, signal=None, **facts):
    signal = made_signal(seed, seconds=seconds, rate=rate) if signal is None else signal
    facts = {"id": f"r{seed:03d}", "status": MEASURED, "source": f"r{seed:03d}.hea", "format": "WFDB"} | facts
    return EcgRecord(signal=signal, sampling_rate_hz=rate, **facts)
