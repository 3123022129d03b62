"""How an ECG lies on disk: whole digital steps in 16 bits, one scale a record, and the facts beside them.

  millivolts = steps * scale          -32768: not measured

The scale is the source's own step wherever one can be found again (1 uV, 4.88 uV, 1.25 uV, half of it where leads were
derived), so that reading gives the very millivolts that were stored. Where there is none, as in a filtered recording,
or where the recording is too large for 16 bits, the largest sample takes all of them: the error is scale / 2 at most.

A row is a record as plain NumPy arrays, numbers and texts, which processes hand on and tensorflow-datasets writes.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.data.ecg.fingerprint import fingerprint
from medjax.data.ecg.leads import LEADS, einthoven_error
from medjax.data.ecg.record import STATUSES, EcgRecord

NOT_MEASURED = -32768
_LARGEST = 32767
_SAMPLED = 8192  # values that the step is looked for in, before all are tried
# steps in common use a millivolt, and twice as many for derived leads
_USUAL_STEPS = (1000.0, 2000.0, 200.0, 400.0)
_ROUNDING = 2.0**-23  # of the largest value

Row = dict[str, Any]


def quantise(signal: np.ndarray) -> tuple[np.ndarray, float]:
    """Millivolts as whole steps.

    signal   [12, samples] float32, mV, NaN where not measured
    returns  steps [12, samples] int16, NOT_MEASURED where the signal is NaN, and the scale, mV a step, > 0

    `restore` gives the signal back bit for bit where it consists of whole steps of any size, up to 32767 of them
    (leads that were derived in float32: but for its rounding); else within scale / 2.
    """
    known = ~np.isnan(signal)
    values = signal[known]
    scale = _step(values) or _widest(values)
    steps = np.full(signal.shape, NOT_MEASURED, np.int16)
    steps[known] = np.rint(values.astype(np.float64) / scale).astype(np.int16)
    return steps, scale


def restore(steps: np.ndarray, scale: float) -> np.ndarray:
    """Millivolts float32 of whole steps int16; NaN where they say NOT_MEASURED. The inverse of `quantise`."""
    # the product in float64: a float32 scale of 0.001 would be off by a bit in one sample of five
    signal = (steps * np.float64(scale)).astype(np.float32)
    signal[steps == NOT_MEASURED] = np.nan
    return signal


def _widest(values: np.ndarray) -> float:
    largest = float(np.abs(values).max(initial=0))
    return largest / _LARGEST or 1e-3


def _step(values: np.ndarray) -> float | None:
    """The step of which all values are whole multiples, in mV; None when there is none or 16 bits do not hold them."""
    if not values.any():
        return None
    some = values[:: max(1, len(values) // _SAMPLED)]
    for usual in _USUAL_STEPS:
        if _fits(some, 1 / usual) and _fits(values, 1 / usual):
            return 1 / usual
    levels = np.unique(np.abs(some.astype(np.float64)))
    gaps = np.diff(np.concatenate([[0.0], levels]))
    resolution = 4 * np.finfo(np.float32).eps * levels[-1]
    if not (gaps > resolution).any():
        return None
    step = float(gaps[gaps > resolution].min())
    # each round knows the step well enough to count the steps of a larger level without a slip
    for reach in (30, 1000, 40000):
        within = levels[(levels > resolution) & (levels < reach * step)]
        if not len(within):
            return None
        step = float(within[-1] / np.rint(within[-1] / step))
    round_numbers = (1 / float(f"{1 / step:.5g}"), float(f"{step:.5g}"), 1 / float(f"{1 / step:.7g}"))
    return next((candidate for candidate in (*round_numbers, step) if _fits(values, candidate)), None)


def _fits(values: np.ndarray, scale: float) -> bool:
    """Whether 16 bits of steps give the values; leads derived in float32 are off by its rounding."""
    exact = values.astype(np.float64)
    steps = np.rint(exact / scale)
    error = np.abs(steps * scale - exact).max()
    return bool(np.abs(steps).max() <= _LARGEST and error <= _ROUNDING * np.abs(exact).max())


def to_row(record: EcgRecord, *, number: int = 0, source: str | None = None) -> Row:
    """A record as the features of `builder.EcgRecords`.

    number  of the record in its file; key = source and number
    source  how the file is called in the data set, None: as the record calls it
    """
    steps, scale = quantise(record.signal)
    return {
        "id": record.id,
        "signal": steps,
        "scale": scale,
        "sampling_rate_hz": float(record.sampling_rate_hz),
        "status": " ".join(record.status),
        "age_years": np.nan if record.age_years is None else float(record.age_years),
        "sex": record.sex or "",
        "patient": record.patient or "",
        "device": record.device or "",
        "time": record.time or "",
        "mains_hz": record.mains_hz or 0,
        "source": record.source if source is None else source,
        "number": number,
        "format": record.format,
        "labels": json.dumps(dict(record.labels), ensure_ascii=False),
        "codes": json.dumps(list(record.codes), ensure_ascii=False),
        "notes": json.dumps(list(record.notes), ensure_ascii=False),
        "waveform": waveform_digest(steps),
        "einthoven_mv": einthoven_error(record.signal),
        "fingerprint": fingerprint(record.signal, record.sampling_rate_hz),
    }


def to_record(row: Mapping[str, Any]) -> EcgRecord:
    """The record of a row; raises ValueError where the row says what no record may."""
    status = tuple(row["status"].split(" "))
    if len(status) != len(LEADS) or not set(status) <= set(STATUSES):
        raise ValueError(
            f"record {row['id']}: status: got {row['status']!r}, expected {len(LEADS)} of {', '.join(STATUSES)}; the "
            "data set is damaged, ingest it again."
        )
    age = float(row["age_years"])
    return EcgRecord(
        id=row["id"],
        signal=restore(row["signal"], float(row["scale"])),
        sampling_rate_hz=float(row["sampling_rate_hz"]),
        status=status,
        age_years=None if np.isnan(age) else age,
        sex=row["sex"] or None,
        patient=row["patient"] or None,
        device=row["device"] or None,
        time=row["time"] or None,
        mains_hz=int(row["mains_hz"]) or None,
        source=row["source"],
        format=row["format"],
        labels=json.loads(row["labels"]),
        codes=tuple(json.loads(row["codes"])),
        notes=tuple(json.loads(row["notes"])),
    )


def waveform_digest(steps: np.ndarray) -> str:
    """sha256, in hex, of the stored steps [12, samples], int16 little-endian, lead after lead."""
    return hashlib.sha256(np.ascontiguousarray(steps, dtype="<i2").tobytes()).hexdigest()
