"""The heart rate of a record, from the beats that wfdb's detector finds."""

import contextlib
import io

import numpy as np

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord

_TRIED = ("II", "V5", "I", "V2")  # beats stand out in these, in most people
_SHORTEST_S, _LONGEST_S = 2.0, 60.0
_FEWEST = 3  # beats


def heart_rate_bpm(record: EcgRecord) -> float | None:
    """Beats a minute: 60 over the median time from one QRS complex to the next; None where fewer than three are found.

    Looks at the first minute of lead II, or of another where that has too few beats; gaps count as zero.
    Detector: XQRS of wfdb-python.
    """
    usable = [lead for lead in (*_TRIED, *LEADS) if record.usable[LEADS.index(lead)]]
    if record.duration_s < _SHORTEST_S:
        return None
    rates = (_rate(record, lead) for lead in list(dict.fromkeys(usable))[: len(_TRIED)])
    return next((rate for rate in rates if rate), None)


def _rate(record: EcgRecord, lead: str) -> float | None:
    from wfdb.processing import XQRS

    rate = record.sampling_rate_hz
    trace = np.nan_to_num(record.signal[LEADS.index(lead)][: int(_LONGEST_S * rate)].astype(np.float64))
    detector = XQRS(sig=trace, fs=rate)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it learns
        detector.detect(verbose=False)
    beats = np.asarray(detector.qrs_inds)
    return float(60 * rate / np.median(np.diff(beats))) if len(beats) >= _FEWEST else None
