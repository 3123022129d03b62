"""One 12-lead ECG as it was measured, whatever file it came from.

Leads are in the order of leads.LEADS and in millivolts. What was not measured is NaN and never zero: `status` says of
each lead whether it was

  measured   stored in the file
  derived    worked out from I and II, which were
  missing    not in the file, all of it NaN
  flat       in the file but constant, as of an electrode that fell off; NaN in the signal

`notes` names everything that was found wrong and what was done about it, so that nothing is mended in silence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from medjax.data.ecg.leads import LEADS

STATUSES = ("measured", "derived", "missing", "flat")
SEXES = ("female", "male")
MAINS_HZ = (50, 60)
LONGEST_SAMPLES = 3_600_000  # an hour at 1 kHz, 173 MB a record in float32: longer ones are Holter recordings
OLDEST_YEARS = 130.0


class EcgFileError(ValueError):
    """A file, or a record in it, that cannot be read as an ECG.

    file    the path as it was given
    reason  what was got, what was expected and what to do
    record  which record of the file; None: the file as a whole
    field   which part of the record: "Age", "gain of lead V1"; None: no single one
    """

    def __init__(self, file: str, reason: str, record: str | None = None, field: str | None = None) -> None:
        super().__init__(file, reason, record, field)  # the arguments, so that it survives the way between processes
        self.file, self.reason, self.record, self.field = str(file), reason, record, field

    def __str__(self) -> str:
        where = [self.file, *([f"record {self.record}"] if self.record else []), *([self.field] if self.field else [])]
        return f"{', '.join(where)}: {self.reason}"


@dataclass(frozen=True, eq=False)
class EcgRecord:
    """One ECG.

    id                record name in its file; unique only together with source
    signal            [12, samples] float32, mV, rows in the order of LEADS, NaN where not measured
    sampling_rate_hz  samples a second
    status            one of STATUSES for each lead
    age_years         at the recording; None: not known
    sex               "female", "male" or None
    patient           identifier of the patient in the source; None: not known
    device            maker and model; None: not known
    time              of the recording, ISO 8601, to the precision known; None: not known
    mains_hz          50 or 60 where hum of the mains was seen, else None
    source            path of the file
    format            name of the format, as "WFDB" or "DICOM"
    labels            name -> 1 or 0 or a number
    codes             diagnosis codes or statements found in the file
    notes             what was marked or corrected, a sentence each

    Raises ValueError naming the record and the field.
    """

    id: str
    signal: np.ndarray
    sampling_rate_hz: float
    status: tuple[str, ...]
    age_years: float | None = None
    sex: str | None = None
    patient: str | None = None
    device: str | None = None
    time: str | None = None
    mains_hz: int | None = None
    source: str = ""
    format: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError(f"record of {self.source or 'no file'}, id: got an empty text, expected a name; give one.")
        self._check_signal()
        self._check(
            math.isfinite(self.sampling_rate_hz) and self.sampling_rate_hz > 0,
            "sampling_rate_hz",
            self.sampling_rate_hz,
            "a number above 0",
        )
        self._check(
            self.age_years is None or 0 <= self.age_years <= OLDEST_YEARS,
            "age_years",
            self.age_years,
            f"0 to {OLDEST_YEARS:g}, or None where it is not known",
        )
        self._check(self.sex is None or self.sex in SEXES, "sex", self.sex, f"one of {', '.join(SEXES)}, or None")
        self._check(self.mains_hz in (None, *MAINS_HZ), "mains_hz", self.mains_hz, "50, 60 or None")
        if self.time is not None:
            try:
                datetime.fromisoformat(self.time)
            except ValueError:
                self._check(False, "time", self.time, "ISO 8601, as 2000-01-31T08:15:00, or None")
        for name, value in self.labels.items():
            self._check(math.isfinite(value), f"labels[{name!r}]", value, "a finite number; leave unknown ones out")

    def _check_signal(self) -> None:
        shape, dtype = self.signal.shape, self.signal.dtype
        good = len(shape) == 2 and shape[0] == len(LEADS) and dtype == np.float32
        self._check(good, "signal", f"{dtype} {shape}", f"float32 ({len(LEADS)}, samples) in mV")
        self._check(
            1 <= shape[1] <= LONGEST_SAMPLES, "signal", f"{shape[1]} samples", f"1 to {LONGEST_SAMPLES}; cut it"
        )
        self._check(not np.isinf(self.signal).any(), "signal", "an infinite value", "finite values, NaN if unknown")
        known = len(self.status) == len(LEADS) and set(self.status) <= set(STATUSES)
        self._check(known, "status", self.status, f"{len(LEADS)} of {', '.join(STATUSES)}")
        for lead, status, row in zip(LEADS, self.status, self.signal, strict=True):
            if status in ("missing", "flat"):
                self._check(bool(np.isnan(row).all()), f"lead {lead}", f"samples in a {status} lead", "NaN throughout")

    def _check(self, good: bool, what: str, got: object, expected: str) -> None:
        if not good:
            where = f"record {self.id}" + (f" of {self.source}" if self.source else "")
            raise ValueError(f"{where}, {what}: got {got}, expected {expected}.")

    @property
    def samples(self) -> int:
        """Length of the recording in samples."""
        return int(self.signal.shape[1])

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.samples / self.sampling_rate_hz

    @property
    def usable(self) -> np.ndarray:
        """[12] bool: leads that are measured or derived."""
        return np.array([status in ("measured", "derived") for status in self.status])
