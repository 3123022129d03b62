"""Augmentation of ECG windows: what patients, electrodes and mains could have done to the same recording.

Each distortion is off by default; its probability is that of a row getting it, its strength has a physical unit:

  time_warp, shift, crop             in time, all leads alike
  amplitude, lead_drop               lead by lead
  wander, mains, electrode_noise     at the nine electrodes, from which the leads follow: Einthoven's law still holds

It runs on the device, inside the step, on windows in mV, before they are normalised. Everything that is drawn for a row
comes from the row's seed, so it depends on no other row, mesh or accumulation. The maths is in data.ecg.distortions.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medjax.config import field
from medjax.data.ecg.signal import Preprocessing

if TYPE_CHECKING:
    import jax

_PROBABILITIES = ("time_warp", "shift", "crop", "amplitude", "wander", "mains", "electrode_noise", "lead_drop")
_SHARES = ("time_warp_share", "amplitude_share")
_STRENGTHS = ("shift_s", "wander_mv", "wander_hz", "mains_mv", "electrode_noise_mv")


@dataclass(frozen=True)
class Augmentation:
    """Distortions of training windows: each a probability, 0 by default, and a strength."""

    time_warp: float = field(0.0, help="probability of a heart rate that speeds up and slows down")
    time_warp_share: float = field(0.1, help="largest change of the rate, as a share of it")
    shift: float = field(0.0, help="probability of a shift in time; what is laid bare is not valid")
    shift_s: float = field(1.0, help="largest shift either way, s")
    crop: float = field(0.0, help="probability that only a stretch of the window stays valid")
    crop_kept: float = field(0.5, help="shortest stretch, as a share of the window")
    amplitude: float = field(0.0, help="probability of another gain in each lead")
    amplitude_share: float = field(0.2, help="largest change of a gain, as a share of it")
    wander: float = field(0.0, help="probability of baseline wander")
    wander_mv: float = field(0.1, help="largest amplitude at an electrode, mV")
    wander_hz: float = field(0.5, help="highest frequency, Hz")
    mains: float = field(0.0, help="probability of hum at 50 or 60 Hz, 0.2 Hz off at most")
    mains_mv: float = field(0.05, help="largest amplitude at an electrode, mV")
    electrode_noise: float = field(0.0, help="probability of white noise at each electrode")
    electrode_noise_mv: float = field(0.02, help="largest standard deviation at an electrode, mV")
    lead_drop: float = field(0.0, help="probability that leads are missing; one is always left")
    lead_drop_most: int = field(6, help="most leads that are dropped")

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability from 0 to 1; 0 is off.")
        for name in _SHARES:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share between 0 and 1.")
        for name in _STRENGTHS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, expected a number above 0; to turn it off, set its "
                    f"probability {name.rpartition('_')[0]} to 0."
                )
        if not 0 < self.crop_kept <= 1:
            raise ValueError(f"crop_kept: got {self.crop_kept}, expected a share above 0, 1 at most.")
        if self.lead_drop_most < 1:
            raise ValueError(f"lead_drop_most: got {self.lead_drop_most}, expected at least 1; lead_drop=0 drops none.")

    @property
    def on(self) -> bool:
        """Whether anything is done at all."""
        return any(getattr(self, name) for name in _PROBABILITIES)


def augment(
    signal: "jax.Array", valid: "jax.Array", seeds: "jax.Array", config: Augmentation, preprocessing: Preprocessing
) -> tuple["jax.Array", "jax.Array"]:
    """Distort windows, each by its own seed. Pure and jit-able; config and preprocessing are static.

    signal         [b, leads, samples] float32, mV, not normalised, 0 where not valid
    valid          [b, leads, samples] bool
    seeds          [b] uint32, as in EcgBatch
    preprocessing  that made the windows: their rate and leads
    returns        signal, valid, the same shapes; rows that no distortion befalls are unchanged, bit for bit
    """
    if not config.on:
        return signal, valid
    from medjax.data.ecg.distortions import distort

    return distort(signal, valid, seeds, config, preprocessing)
