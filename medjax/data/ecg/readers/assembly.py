"""From the channels that a reader found to an EcgRecord.

Everything that all formats have in common happens here and only here: names to leads, standard order, flat and missing
leads marked, the four derived leads, Einthoven's law, mains, bounds on length and rate.
"""

from collections.abc import Sequence
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
    if samples > LONGEST_SAMPLES or channels > 256:
        raise EcgFileError(
            file,
            f"got {channels} channels of {samples:.0f} samples, expected at most 256 of {LONGEST_SAMPLES} "
            "(an hour at 1 kHz); cut the recording into pieces.",
            record,
        )


def assemble(draft: Draft) -> EcgRecord:
    """Make the record. Raises EcgFileError naming the file, the record and the field."""
    rate = float(draft.sampling_rate_hz)
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise draft.error(f"got {rate:g} Hz, expected {RATES_HZ[0]:g} to {RATES_HZ[1]:g}.", "sampling rate")
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
    return EcgRecord(
        id=draft.id,
        signal=signal,
        sampling_rate_hz=rate,
        status=tuple(str(state) for state in status),
        age_years=draft.age_years,
        sex=draft.sex,
        patient=(draft.patient or "").strip() or None,
        device=" ".join((draft.device or "").split()) or None,
        time=draft.time.isoformat() if draft.time else None,
        mains_hz=mains_hz(signal, rate),
        source=draft.file,
        format=draft.format,
        codes=tuple(dict.fromkeys(text for code in draft.codes if (text := " ".join(code.split())))),
        notes=tuple(dict.fromkeys(notes)),
    )


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
