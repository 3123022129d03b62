"""From a record as it was measured to the samples that a model sees.

What is done is data, a `Preprocessing`, which a checkpoint carries along, so that a file from any machine reaches the
model in the form it was trained on:

  gaps filled (interpolated; marked as not valid)    so that a filter has no NaN to spread
  DC removed, high-pass, low-pass, notch             at the record's own rate, without any delay
  resampled to sampling_rate_hz                      polyphase, any rate: 1000, 500, 400, 300, 257, 240, 100 Hz
  cut into windows of `samples`                      short ones padded; padding is not valid
  normalised                                         over valid samples only, last of all, also on the device

The filters are those of a Butterworth or notch filter run forwards and backwards: of zero phase, with the square of its
amplitude response, 1/2 at the corner frequency. They are applied in the frequency domain by a cosine transform, which
is what forwards and backwards comes to on a record that is continued by its own mirror image for ever. That needs no
padding, so a record may be shorter than a filter; it takes a fifth of the time of recursive filters; and, since the
response is that of the analogue filter, a frequency is treated alike at whatever rate it was sampled. A straight line
is taken off before the transform, because a mirrored drift has corners; where no high-pass wants it gone it is put
back. Tests hold this against scipy's sosfiltfilt.

Arrays: signal [leads, samples] float32 in mV, 0 where not valid; valid [leads, samples] bool.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from medjax.config import field
from medjax.data.ecg.leads import LEAD_INDEX, LEADS
from medjax.data.ecg.record import EcgRecord

HIGH_PASS_ORDER = 2
LOW_PASS_ORDER = 4
NOTCH_QUALITY = 30.0  # 50 Hz: 1.7 Hz wide
MOST_WINDOWS = 3
WHOLE_S = 120.0  # longer records are prepared a stretch at a time
_MARGIN_S, _MARGIN_PERIODS = 5.0, 5.0
_FLAT_MV = 1e-4  # less than a step of any converter: a lead that varies less is flat
_SLACK = 0.05  # windows: a record longer by less than this share of a window is cut instead of read twice
_LARGEST_FACTOR = 10_000  # of resampling: the oddest rates are met to 1 in 20,000, half a millisecond in 10 s


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a record before a model sees it."""

    sampling_rate_hz: float = field(250.0, help="that records are resampled to, Hz")
    samples: int = field(2500, help="of a window; 2500 at 250 Hz are 10 s")
    leads: tuple[str, ...] = field(LEADS, help="in the order in which the model sees them", choices=LEADS)
    high_pass_hz: float = field(0.5, help="corner of the high-pass filter, Hz; 0: none")
    low_pass_hz: float = field(0.0, help="corner of the low-pass filter, Hz; 0: none")
    notch: Literal["auto", "none", 50, 60] = field("auto", help="mains taken out, Hz; auto: where hum of it was seen")
    normalisation: Literal["record", "lead", "fixed", "minmax", "none"] = field(
        "record",
        help="mean 0 and sd 1 of the record or of each lead; fixed: by mean_mv and sd_mv; minmax: the record from 0 to "
        "1; none: mV",
    )
    clip_mv: float = field(0.0, help="amplitudes beyond it are cut before normalising, mV; 0: none")
    mean_mv: tuple[float, ...] = field((), help="fixed: one for all leads or one each, mV")
    sd_mv: tuple[float, ...] = field((), help="fixed: one for all leads or one each, mV")

    def __post_init__(self) -> None:
        _positive("sampling_rate_hz", self.sampling_rate_hz)
        if self.samples < 1:
            raise ValueError(f"samples: got {self.samples}, expected at least 1; a window of 10 s has 2500 at 250 Hz.")
        if not self.leads or len(set(self.leads)) < len(self.leads) or not set(self.leads) <= set(LEADS):
            raise ValueError(f"leads: got {' '.join(self.leads)}, expected different ones of {' '.join(LEADS)}.")
        for name in ("high_pass_hz", "low_pass_hz", "clip_mv"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}, expected a number above 0, or 0 for none.")
        if 0 < self.low_pass_hz <= self.high_pass_hz:
            raise ValueError(
                f"low_pass_hz: got {self.low_pass_hz:g}, expected more than high_pass_hz={self.high_pass_hz:g}; "
                "nothing would be left between them."
            )
        _one_of("notch", self.notch, ("auto", "none", 50, 60))
        _one_of("normalisation", self.normalisation, ("record", "lead", "fixed", "minmax", "none"))
        for name in ("mean_mv", "sd_mv"):
            count = len(getattr(self, name))
            expected = (1, len(self.leads)) if self.normalisation == "fixed" else (0,)
            if count not in expected:
                wanted = "one for all leads or one each" if self.normalisation == "fixed" else "none"
                raise ValueError(
                    f"{name}: got {count} numbers for {len(self.leads)} leads and normalisation={self.normalisation}, "
                    f"expected {wanted}; they belong to normalisation=fixed."
                )
        for value in self.sd_mv:
            _positive("sd_mv", value)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, such as the one that lies beside a model's weights."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """What `to_json` was made from. Raises ValueError where a key is missing or unknown, or a value is refused."""
        known = {item.name for item in dataclasses.fields(cls)}
        if wrong := known ^ set(values):
            raise ValueError(
                f"preprocessing: {', '.join(sorted(wrong))} missing or unknown, expected exactly "
                f"{', '.join(sorted(known))}; the file was written by another version of medjax."
            )
        read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**read)


def prepare(record: EcgRecord, p: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Filter and resample a whole record; its windows are cut and normalised afterwards.

    returns  signal [leads, n] float32, mV; valid [leads, n] bool. n is the record's duration at p.sampling_rate_hz,
             rounded up; sample i lies at i / p.sampling_rate_hz seconds.
    """
    rate = record.sampling_rate_hz
    measured = record.signal[[LEAD_INDEX[lead] for lead in p.leads]]  # a copy
    known = ~np.isnan(measured)
    _fill_gaps(measured, known)
    filtered = _filter(measured, rate, notch_hz(record, p), p)
    resampled, valid = _resample(filtered, known, *_ratio(rate, p.sampling_rate_hz))
    return resampled * valid, valid


def notch_hz(record: EcgRecord, p: Preprocessing) -> int | None:
    """The mains frequency that is taken out of a record, Hz; None: none."""
    if p.notch == "auto":
        return record.mains_hz
    return None if p.notch == "none" else int(p.notch)


def prepared_samples(samples: int, rate: float, p: Preprocessing) -> int:
    """How many samples `prepare` makes of a record of so many at a rate in Hz."""
    up, down = _ratio(rate, p.sampling_rate_hz)
    return -(-samples * up // down)


def window(signal: np.ndarray, valid: np.ndarray, start: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples start to start + samples of a prepared record; where it has none, padding of 0 that is not valid.

    signal, valid  [leads, n]
    returns        signal, valid [leads, samples]; copies
    """
    cut = np.zeros((len(signal), samples), np.float32), np.zeros((len(signal), samples), bool)
    first, last = max(start, 0), min(start + samples, signal.shape[-1])
    if first < last:
        for part, whole in zip(cut, (signal, valid), strict=True):
            part[:, first - start : last - start] = whole[:, first:last]
    return cut


def window_starts(n: int, samples: int) -> list[int]:
    """Where the windows of a record of n samples begin: as many as cover it, 3 at most, evenly spread.

    A record that is longer than its windows by a 20th of one or less is cut at both ends; one that is shorter than a
    window begins with it.
    """
    count = min(max(math.ceil(n / samples - _SLACK), 1), MOST_WINDOWS)
    free = max(n - samples, 0)
    return [free // 2] if count == 1 else [round(i * free / (count - 1)) for i in range(count)]


def windows(
    signal: np.ndarray, valid: np.ndarray, starts: Sequence[int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a prepared record that begin at these samples: signal, valid [starts, leads, samples]."""
    cuts = [window(signal, valid, start, samples) for start in starts]
    return np.stack([cut[0] for cut in cuts]), np.stack([cut[1] for cut in cuts])


def prepared_windows(record: EcgRecord, p: Preprocessing, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a record that begin at these samples of it as it is prepared: signal, valid [starts, leads, n].

    A record of two minutes at most is prepared as a whole. Of a longer one only each window is, with a margin on both
    sides in which the filters die away (5 seconds, and 5 periods of the corner of the high-pass), so that an hour of
    recording takes no more memory than is read; without a high-pass, the mean that is taken off is that of the stretch.
    """
    if record.duration_s <= WHOLE_S:
        return windows(*prepare(record, p), starts, p.samples)
    up, down = _ratio(record.sampling_rate_hz, p.sampling_rate_hz)
    margin = round((_MARGIN_S + (_MARGIN_PERIODS / p.high_pass_hz if p.high_pass_hz else 0)) * record.sampling_rate_hz)
    cuts = []
    for start in starts:
        # whole steps of the resampling, so that samples lie where those of the whole record do
        first = max(start * down // up - margin, 0) // down
        last = -(-(start + p.samples) * down // up) + margin
        stretch = replace(record, signal=record.signal[:, first * down : last])
        cuts.append(window(*prepare(stretch, p), start - first * up, p.samples))
    return np.stack([cut[0] for cut in cuts]), np.stack([cut[1] for cut in cuts])


def judged_windows(valid: np.ndarray, patch: int) -> np.ndarray:
    """Which windows [windows, leads, samples] hold a patch that was measured throughout, bool; of others no model that
    sees patches of so many samples can say anything, so they are left out of what is averaged over a record."""
    return np.asarray(valid.reshape(len(valid), -1, patch).all(-1).any(-1))


def normalise(signal: Any, valid: Any, p: Preprocessing) -> Any:
    """Bring windows to the scale on which the model works. Takes NumPy and JAX arrays, also under jit and grad.

    signal   [..., leads, samples] float32, mV, leads as in p.leads
    valid    the same shape, bool; other samples count for nothing
    returns  the same shape; 0 where not valid, and for a flat lead or record under "record", "lead" and "minmax"
    """
    xp = signal.__array_namespace__()
    weights = valid.astype(signal.dtype)
    if p.clip_mv:
        signal = xp.clip(signal, -p.clip_mv, p.clip_mv)
    if p.normalisation == "none":
        return signal * weights
    if p.normalisation == "fixed":
        mean, sd = (xp.asarray(values, signal.dtype)[:, None] for values in (p.mean_mv, p.sd_mv))
        return (signal - mean) / sd * weights
    axes = (-1,) if p.normalisation == "lead" else (-2, -1)
    if p.normalisation == "minmax":
        low = xp.min(xp.where(valid, signal, xp.inf), axes, keepdims=True)
        spread = xp.max(xp.where(valid, signal, -xp.inf), axes, keepdims=True) - low
        varies = spread > _FLAT_MV
        low, spread = xp.where(varies, low, 0.0), xp.where(varies, spread, 1.0)
        return (signal - low) / spread * (weights * varies)
    count = xp.maximum(xp.sum(weights, axes, keepdims=True), 1.0)
    centred = (signal - xp.sum(signal * weights, axes, keepdims=True) / count) * weights
    variance = xp.sum(centred * centred, axes, keepdims=True) / count
    varies = variance > _FLAT_MV**2
    return centred / xp.sqrt(xp.where(varies, variance, 1.0)) * varies


def _fill_gaps(measured: np.ndarray, known: np.ndarray) -> None:
    """Replace NaN in rows [rows, samples] by straight lines between what is known, by 0 where nothing is."""
    places = np.arange(measured.shape[-1])
    for row in np.flatnonzero(~known.all(-1)):
        there = known[row]
        measured[row, ~there] = np.interp(places[~there], places[there], measured[row, there]) if there.any() else 0.0


def _filter(measured: np.ndarray, rate: float, mains_hz: int | None, p: Preprocessing) -> np.ndarray:
    """measured [rows, samples] without DC, drift and mains, float32."""
    from scipy.fft import dct, idct

    centred = measured - measured.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    samples = measured.shape[-1]
    gain = _gain(samples, rate, p.high_pass_hz, p.low_pass_hz, mains_hz)
    if gain is None:
        return centred
    line = np.linspace(-1, 1, samples, dtype=np.float32) if samples > 1 else np.zeros(1, np.float32)
    # einsum, not @: the threads of BLAS would get in the way of those that prepare other records
    slope = np.einsum("rn,n->r", centred, line) / max(float(np.sum(line * line)), 1.0)
    drift = slope[:, None] * line
    spectrum = dct(centred - drift, axis=-1, overwrite_x=True)
    spectrum *= gain
    filtered = idct(spectrum, axis=-1, overwrite_x=True)
    return filtered if p.high_pass_hz else filtered + drift


@lru_cache(maxsize=64)
def _gain(
    samples: int, rate: float, high_pass_hz: float, low_pass_hz: float, mains_hz: int | None
) -> np.ndarray | None:
    """Squared amplitude response of the filters at the frequencies of a cosine transform, [samples] float32.

    Butterworth: 1 / (1 + (f / corner)^(2 order)), inverted for a high-pass. Notch: (f^2 - f0^2)^2 / ((f^2 - f0^2)^2 +
    (f f0 / Q)^2). None: no filter at all.
    """
    if not (high_pass_hz or low_pass_hz or mains_hz):
        return None
    hertz = np.arange(samples) * (rate / (2 * samples))
    gain = np.ones(samples)
    if high_pass_hz:
        power = (hertz / high_pass_hz) ** (2 * HIGH_PASS_ORDER)
        gain *= power / (1 + power)
    if low_pass_hz:
        gain /= 1 + (hertz / low_pass_hz) ** (2 * LOW_PASS_ORDER)
    if mains_hz:
        away = (hertz**2 - mains_hz**2) ** 2
        gain *= away / (away + (hertz * mains_hz / NOTCH_QUALITY) ** 2)
    return gain.astype(np.float32)


@lru_cache(maxsize=64)
def _ratio(source_hz: float, target_hz: float) -> tuple[int, int]:
    """Up and down factors of resampling, in lowest terms."""
    exact = Fraction(target_hz).limit_denominator(10**6) / Fraction(source_hz).limit_denominator(10**6)
    near = exact.limit_denominator(_LARGEST_FACTOR) if exact < 1 else 1 / (1 / exact).limit_denominator(_LARGEST_FACTOR)
    return near.numerator, near.denominator


def _resample(filtered: np.ndarray, known: np.ndarray, up: int, down: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples i * down / up of rows [rows, samples], and which of them lie on or between known ones."""
    if up == down:
        return filtered, known
    from scipy.signal import resample_poly

    resampled = resample_poly(filtered, up, down, axis=-1, padtype="symmetric", window=_antialias(up, down))
    last = known.shape[-1] - 1
    before = np.arange(resampled.shape[-1]) * down // up
    after = np.minimum(-(-np.arange(resampled.shape[-1]) * down // up), last)
    return resampled, known[:, before] & known[:, after]


@lru_cache(maxsize=64)
def _antialias(up: int, down: int) -> np.ndarray:
    """The low-pass filter of `scipy.signal.resample_poly`, which would design it anew for each record."""
    from scipy.signal import firwin

    widest = max(up, down)
    return firwin(20 * widest + 1, 1 / widest, window=("kaiser", 5.0)).astype(np.float32)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}, expected a number above 0.")


def _one_of(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(str, choices))}.")
