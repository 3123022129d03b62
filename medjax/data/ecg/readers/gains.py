"""Digital samples to millivolts, with gains that are seen to be wrong corrected.

Headers in circulation state wrong gains, and samples tell it in three ways:

  laws    each lead was scaled by a gain of its own (as to a range of 1): the physical values break Einthoven's and
          Goldberger's laws although the stored numbers keep them. LUDB does.
  steps   the stored numbers are microvolts in steps of s, and the header turns s into a gain: 1000 / s, or 1000 s. In
          the PhysioNet/CinC Challenge 2021, 200 per mV for steps of 5 and 4880 for steps of 4.88.
  size    the physical values are no ECG's, and would be at 1000 per mV.

In all three the numbers are read as 1000 per mV, and a note says so. A plain low- or high-voltage ECG is left alone.
Steps of whole numbers are not enough where the header's amplitude is an ECG's, as a converter may have coarse steps of
its own: then a note says that the gain may be wrong. Steps that are no whole number, as 4.88, were rounded after a
conversion to a unit, which the header then states wrongly.
"""

from collections.abc import Sequence

import numpy as np

from medjax.data.ecg.leads import LEAD_INDEX, LEADS, einthoven_error, goldberger_error, standard_name
from medjax.data.ecg.quality import LAW_TOLERANCE_MV, amplitude

_USUAL = 1000.0  # units per mV: a microvolt a unit
_POSSIBLE_MV = (0.02, 100.0)  # peak to peak of the median lead
_USUAL_MV = (0.5, 5.0)  # the same, of nearly all ECGs
_LAW_UNITS = 4.0  # three rounded numbers, with a unit to spare
_SMALLEST_STEP = 4.0  # smaller steps cannot be told from rounding
_WHOLE = 0.01  # a step this near to a whole number is one
_ON_STEPS = 0.4  # share of samples that must stand on steps, 1 / step by chance; filters move some off them


def calibrate(
    digital: np.ndarray, names: Sequence[str], per_mv: np.ndarray, baselines: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """The samples in mV, and notes where the stated gains were not believed, or are odd.

    digital    [channels, samples] float64 as stored, NaN where not measured
    names      of the channels, in any spelling
    per_mv     [channels] units per mV as stated
    baselines  [channels] unit that stands for 0 mV
    """
    stated = (digital - baselines[:, None]) / per_mv[:, None]
    rows = [row for row, name in enumerate(names) if standard_name(name)]
    turned = [names[row] for row in range(len(names)) if per_mv[row] < 0]
    notes = [f"gain of {' '.join(turned)} is negative: turned over, as stated"] if turned else []
    reason = None
    if len(set(per_mv[rows])) > 1:
        reason = _broken_laws(digital, stated, names)
    elif rows and (step := _step(digital[rows], float(per_mv[rows[0]]))):
        found = f"the stored numbers go in steps of {step:g}"
        if abs(step - round(step)) > _WHOLE or not _USUAL_MV[0] <= amplitude(stated[rows]) <= _USUAL_MV[1]:
            reason = f"{found}, which are microvolts"
        else:
            notes.append(f"gain of {per_mv[rows[0]]:g} per mV may be wrong: {found}, as microvolts do; left as stated")
    if rows and reason is None and not _possible(stated[rows]):
        reason = f"amplitudes of {amplitude(stated[rows]):.3g} mV are no ECG's"
    if reason is None or not _possible(digital[rows] / _USUAL):
        return stated, notes
    gains = sorted({f"{gain:g}" for gain in per_mv[rows]}, key=float)
    said = gains[0] if len(gains) == 1 else f"{gains[0]} to {gains[-1]}"
    return digital / _USUAL, [f"wrong gain in the header ({said} per mV): {reason}; read as {_USUAL:g} per mV"]


def _possible(signal: np.ndarray) -> bool:
    """Whether amplitudes can be an ECG's at all, artefacts included; nothing is said against a flat one."""
    size = amplitude(signal)
    return bool(np.isnan(size)) or _POSSIBLE_MV[0] <= size <= _POSSIBLE_MV[1]


def _broken_laws(digital: np.ndarray, stated: np.ndarray, names: Sequence[str]) -> str | None:
    volts, numbers = _in_order(stated, names), _in_order(digital, names)
    broken = np.fmax(einthoven_error(volts), goldberger_error(volts))
    kept = np.fmax(einthoven_error(numbers), goldberger_error(numbers))
    if broken > LAW_TOLERANCE_MV and kept <= _LAW_UNITS:
        return (
            f"it breaks the laws of the limb leads by {broken:.2g} mV, the stored numbers keep them to {kept:g} units"
        )
    return None


def _step(digital: np.ndarray, per_mv: float) -> float | None:
    """The step that stored numbers go in where it is the one that the gain states, or its inverse."""
    for step in (_USUAL / per_mv, per_mv / _USUAL):
        if step < _SMALLEST_STEP:
            continue
        shares = [
            float((np.abs(values - step * np.round(values / step)) <= 0.5).mean())
            for row in digital
            if len(values := row[np.abs(row) > 2 * step])  # a quiet lead rests at 0, which is on any steps
        ]
        if shares and np.median(shares) >= _ON_STEPS:
            return step
    return None


def _in_order(signal: np.ndarray, names: Sequence[str]) -> np.ndarray:
    ordered = np.full((len(LEADS), signal.shape[1]), np.nan)
    for name, row in zip(names, signal, strict=True):
        if lead := standard_name(name):
            ordered[LEAD_INDEX[lead]] = row
    return ordered
