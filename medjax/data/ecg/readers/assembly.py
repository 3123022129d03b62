"""From the channels that a reader found to an EcgRecord.

Everything that all formats have in common happens here and only here: names to leads, standard order, flat and missing
leads marked, the four derived leads, Einthoven's law, mains, bounds on length and rate.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from medjax.data.ecg.leads import DERIVED, LEAD_INDEX, LEADS, derive, standard_name
from medjax.data.ecg.quality import findings, flat_leads, mains_hz
from medjax.data.ecg.readers.demographics import age_in_years, sex_of
from medjax.data.ecg.readers.stated import TABLE
from medjax.data.ecg.record import LONGEST_SAMPLES, EcgFileError, EcgRecord

RATES_HZ = (25.0, 50_000.0)
_UNNAMED = {"ecg", "ekg", "心電図"}
_SHOWN = 8  # names listed in a note
# in which no lead moves, at an end and inside: longer than a slow heart rests, even without noise
_PADDING_S = (0.5, 1.0)
_MOST_CHANNELS, _MOST_VALUES = 256, 16 * LONGEST_SAMPLES
LONGEST_TEXT = 200  # characters of anything that a file says
_LONGEST_NOTE, _MOST_CODES, _MOST_NOTES = 500, 200, 100


@dataclass
class Draft:
    """What a reader found in a file.

    channels  name as the file spells it, samples [n] in mV (NaN where not measured)
    codes     diagnosis codes or statements
    notes     what the reader has to say already
    """

    file: str
    format: str
    id: str
    sampling_rate_hz: float
    channels: Sequence[tuple[str, np.ndarray]]
    age_years: float | None = None
    sex: str | None = None
    patient: str | None = None
    device: str | None = None
    time: datetime | None = None
    codes: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    def read_age(self, text: str) -> None:
        """Take the age from a text, with a note where it was not plain."""
        self.age_years, note = age_in_years(text)
        self.notes += [note] if note else []

    def read_sex(self, text: str) -> None:
        """Take the sex from a text, with a note where it means neither."""
        self.sex, note = sex_of(text)
        self.notes += [note] if note else []

    def error(self, reason: str, part: str | None = None) -> EcgFileError:
        """An error that names the file and the record."""
        return EcgFileError(self.file, reason, self.id, part)


def check_size(file: str, record: str, samples: float, channels: int = len(LEADS)) -> None:
    """Raise EcgFileError before samples of a record are read that is too long, or that has none."""
    if samples < 1 or channels < 1:
        raise EcgFileError(file, f"got {channels} channels of {samples:g} samples, expected at least 1 of 1.", record)
    if samples > LONGEST_SAMPLES or channels > _MOST_CHANNELS or samples * channels > _MOST_VALUES:
        raise EcgFileError(
            file,
            f"got {channels} channels of {samples:.0f} samples, expected at most 16 of {LONGEST_SAMPLES} (an hour at "
            f"1 kHz), or {_MOST_CHANNELS} shorter ones; cut the recording into pieces.",
            record,
        )


def check_rate(rate: float) -> None:
    """Raise ValueError for a sampling rate that no ECG has."""
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise ValueError(f"got {rate:g} Hz, expected {RATES_HZ[0]:g} to {RATES_HZ[1]:g}.")


def bounded(text: str, name: str, notes: list[str]) -> str:
    """A text of a file; a longer one than any name is cut, says a note, and a digest keeps it apart from others."""
    if len(text) <= LONGEST_TEXT:
        return text
    notes.append(f"{name}: got {len(text):,} characters, cut to {LONGEST_TEXT}")
    return f"{text[: LONGEST_TEXT - 17]} {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


@contextmanager
def noted(draft: Draft, name: str) -> Iterator[None]:
    """A fact about the recording that cannot be read becomes a note: the recording itself may be sound."""
    try:
        yield
    except Exception as error:  # libraries decode values when they are asked for, and raise what they like
        what = f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
        draft.notes.append(f"{name}: cannot be read ({what}), left unknown")


def assemble(draft: Draft) -> EcgRecord:
    """Make the record. Raises EcgFileError naming the file, the record and the field."""
    rate = float(draft.sampling_rate_hz)
    try:
        check_rate(rate)
    except ValueError as error:
        raise draft.error(str(error), "sampling rate") from None
    notes = list(draft.notes)
    rows = _rows(draft, notes)
    check_size(draft.file, draft.id, max(len(samples) for samples in rows.values()))
    signal = np.full((len(LEADS), max(len(samples) for samples in rows.values())), np.nan, np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, and is counted below
        for lead, samples in rows.items():
            signal[LEAD_INDEX[lead], : len(samples)] = samples
    if len({len(samples) for samples in rows.values()}) > 1:
        lengths = ", ".join(f"{lead} {len(samples)}" for lead, samples in rows.items())
        notes.append(f"leads differ in length ({lengths}); the shorter ones end as not measured")
    if np.isinf(signal).any():
        notes.append(f"{int(np.isinf(signal).sum())} infinite samples count as not measured")
        signal[np.isinf(signal)] = np.nan

    status = np.where(np.isnan(signal).all(axis=1), "missing", "measured").astype("<U8")
    flat = flat_leads(signal)
    status[flat], signal[flat] = "flat", np.nan
    if padded := _remove_padding(signal, rate):
        notes.append(padded)
        left = status == "measured"
        flat = left & (np.isnan(signal).all(axis=1) | flat_leads(signal))
        status[flat], signal[flat] = "flat", np.nan
    derivable = [LEAD_INDEX[lead] for lead in DERIVED if status[LEAD_INDEX[lead]] == "missing"]
    if status[0] == status[1] == "measured" and derivable:
        filled = derive(signal)
        signal[derivable], status[derivable] = filled[derivable], "derived"
    for name, words in (("missing", "missing"), ("flat", "flat"), ("derived", "derived from I and II")):
        if found := [lead for lead, state in zip(LEADS, status, strict=True) if state == name]:
            notes.append(f"leads {' '.join(found)}: {words}")
    if not np.isin(status, ("measured", "derived")).any():
        notes.append("no lead holds a signal: nothing of this record can be used")
    notes += findings(signal)
    texts = {
        "id": bounded(draft.id, "id", notes),
        "patient": bounded((draft.patient or "").strip(), "patient", notes),
        "device": bounded(" ".join((draft.device or "").split()), "device", notes),
    }
    codes = list(dict.fromkeys(text for code in draft.codes if (text := " ".join(code.split()))))
    if len(codes) > _MOST_CODES:
        notes.append(f"codes: got {len(codes)}, the first {_MOST_CODES} kept")
    codes = [bounded(code, "code", notes) for code in codes[:_MOST_CODES]]
    notes = [note if len(note) <= _LONGEST_NOTE else f"{note[:_LONGEST_NOTE]}…" for note in dict.fromkeys(notes)]
    return EcgRecord(
        id=texts["id"],
        signal=signal,
        sampling_rate_hz=rate,
        status=tuple(str(state) for state in status),
        age_years=draft.age_years,
        sex=draft.sex,
        patient=texts["patient"] or None,
        device=texts["device"] or None,
        time=draft.time.isoformat() if draft.time else None,
        mains_hz=mains_hz(signal, rate),
        source=draft.file,
        format=draft.format,
        codes=tuple(codes),
        notes=tuple(notes[:_MOST_NOTES]),
    )


def _remove_padding(signal: np.ndarray, rate: float) -> str | None:
    """Set stretches to NaN in which every lead rests at one value, as where an export was filled up; says what it did.

    signal  [12, samples] mV, NaN where not measured; changed in place
    """
    before, after = signal[:, :-1], signal[:, 1:]
    known = ~np.isnan(before) & ~np.isnan(after)
    still = ((before == after) | ~known).all(axis=0) & known.any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]])))
    at_end, inside = (max(2, round(seconds * rate)) for seconds in _PADDING_S)
    found = []
    for start, end in zip(edges[::2], edges[1::2] + 1, strict=True):  # end: behind the last sample
        least = at_end if start == 0 or end == signal.shape[1] else inside
        if end - start >= least:
            signal[:, start:end] = np.nan
            found.append(f"{start / rate:.2f} to {end / rate:.2f} s")
    if not found:
        return None
    shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    return f"padding: all leads rest at one value from {shown}; counts as not measured"


def _rows(draft: Draft, notes: list[str]) -> dict[str, np.ndarray]:
    """Lead -> samples, in standard order; says in notes what was left out."""
    rows: dict[str, np.ndarray] = {}
    others: list[str] = []
    channels = draft.channels
    if len(channels) == 1 and channels[0][0].strip().lower() in _UNNAMED:
        notes.append(f"the only channel is called {channels[0][0]!r} and no lead: taken as I, the usual single lead")
        channels = [("I", channels[0][1])]
    for name, samples in channels:
        lead = standard_name(name)
        if lead is None:
            others.append(name)
        elif lead not in rows:
            rows[lead] = samples
        elif not np.array_equal(rows[lead], samples, equal_nan=True):
            raise draft.error("got two different channels of this name, expected one; rename the wrong one.", lead)
        else:
            notes.append(f"{lead}: stored twice, alike")
    if not rows:
        raise draft.error(
            f"got the channels {_listed(others)}, expected names of leads as I, aVR or V1; rename them, or state the "
            f"leads in {TABLE} beside the file.",
            "leads",
        )
    if others:
        notes.append(f"channels {_listed(others)}: not among the twelve leads, left out")
    return {lead: rows[lead] for lead in LEADS if lead in rows}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "(none)"
